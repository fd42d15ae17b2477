"""Small training states, divided and written as members would do it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from shoal.errors import CheckpointError
from shoal.state.layout import Extent, Shard, divide
from shoal.state.manifest import FileEntry, Manifest, parameter_table
from shoal.state.storage import Storage
from shoal.state.store import CheckpointStore, step_folder
from shoal.state.writer import AsyncShardWriter

SIZES = (("embed.weight", 12), ("norm.weight", 1), ("head.weight", 30), ("head.bias", 7))
KEYS = ("param", "exp_avg", "exp_avg_sq")


def full_state(seed: int = 0, sizes: Sequence[tuple[str, int]] = SIZES) -> dict[str, dict[str, torch.Tensor]]:
    """key -> parameter -> its elements."""
    random = torch.Generator().manual_seed(seed)
    return {key: {name: torch.randn(n, generator=random) for name, n in sizes} for key in KEYS}


def shard_of(state: dict[str, dict[str, torch.Tensor]], extents: Sequence[Extent], step: int = 0) -> Shard:
    """The shard that holds `extents`."""
    return Shard(
        extents=tuple(extents),
        tensors={
            key: torch.cat([torch.zeros(0), *(values[e.name][e.start : e.stop] for e in extents)])
            for key, values in state.items()
        },
        scalars={"optimizer_step": step},
        buffers={"norm.mean": torch.arange(3, dtype=torch.float64), "norm.count": torch.tensor(step)},
    )


def save(
    base: Any,
    step: int,
    state: dict[str, dict[str, torch.Tensor]],
    *,
    size: int = 2,
    sizes: Sequence[tuple[str, int]] = SIZES,
    filesystem: Any = None,
    metrics: dict[str, float] | None = None,
) -> str:
    """Write and publish a checkpoint as `size` members and a coordinator would; returns its URI."""
    entries = []
    for rank in range(size):
        writer = AsyncShardWriter(filesystem)
        writer.submit(step, shard_of(state, divide(sizes, rank, size), step), str(base), rank, size)
        assert writer.drain(30)
        (written,) = writer.poll()
        if written.error is not None:
            raise CheckpointError(written.error)
        entries += [FileEntry.from_dict(f) for f in written.files]
    return CheckpointStore(base, filesystem).publish(manifest_of(step, entries, sizes=sizes, metrics=metrics))


def manifest_of(
    step: int,
    files: Sequence[FileEntry],
    *,
    sizes: Sequence[tuple[str, int]] = SIZES,
    metrics: dict[str, float] | None = None,
) -> Manifest:
    return Manifest(
        step=step,
        job_name="job",
        job_digest="j" * 64,
        model_digest="m" * 64,
        parameters=parameter_table([(name, n, (n,)) for name, n in sizes]),
        files=tuple(files),
        scalars={"optimizer_step": step},
        cursor={"version": 1, "position": step * 8},
        metrics=metrics or {},
        engine="replicated",
        world_size=len(files),
        time=time.time(),
    )


def folder_of(base: Any, step: int) -> Storage:
    return Storage(base).child(step_folder(step))
