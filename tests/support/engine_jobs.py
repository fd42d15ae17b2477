"""Jobs of the engines' contract, and how their outcomes are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from shoal.job import Batch, Budget, Data, Engine, Job, Optimizer, Workers
from shoal.state.digest import shards_digest
from shoal.state.layout import Shard
from shoal.tasks.base import Task
from tests.support.engine_runs import TOTAL, Outcome

ENGINES = ("replicated", "zero1", "zero2", "zero3")

_STAGES: dict[str, Literal[1, 2, 3]] = {"zero1": 1, "zero2": 2, "zero3": 3}

EXACT = 1e-5
"""fp32: largest difference, relative to the largest element of a parameter. Seen: 1.3e-6 after 50 steps."""
LOOSE = 3e-2
"""bf16: the shape of a batch decides how its products are rounded."""


def make_job(task: Task, engine: str, *, size: int = 24, options: dict[str, Any] | None = None, **fields: Any) -> Job:
    """A job of 50 steps: AdamW with clipping, warm-up and cosine, 8 virtual shards."""
    kind = Engine(name="zero", stage=_STAGES[engine]) if engine in _STAGES else Engine()
    fields.setdefault("optimizer", Optimizer(lr=1e-2, clip_norm=0.5))
    return Job(
        task=task,
        data=Data(train="none"),
        budget=Budget(steps=TOTAL),
        batch=Batch(size=size, virtual_shards=8),
        engine=replace(kind, **(options or {})),
        workers=Workers(max=4),
        seed=3,
        **fields,
    )


def difference(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """Largest difference relative to the largest element of each tensor."""
    assert found.keys() == right.keys()
    pairs = [(found[n].double(), right[n].double()) for n in right]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def digest_of(shards: Sequence[Shard]) -> str:
    """SHA-256 of a whole state that is held in parts."""
    sizes: dict[str, int] = {}
    for extent in (e for shard in shards for e in shard.extents):
        sizes[extent.name] = max(sizes.get(extent.name, 0), extent.stop)
    return shards_digest(shards, list(sizes.items()))


def state_of(outcomes: Sequence[Outcome]) -> list[Shard]:
    """The whole state, as the members hold it."""
    shards = [o.shard for o in outcomes if o.shard is not None]
    assert len(shards) == len(outcomes)
    return shards
