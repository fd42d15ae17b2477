"""Training runs for the engines' contract: through an engine, in a pool's process, and as a plain torch loop."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from shoal.engines import make_engine
from shoal.engines.factory import build_model
from shoal.engines.micro_batches import even_bounds, plan
from shoal.engines.protocol import Engine, ReadState
from shoal.engines.randomness import seed_shard
from shoal.job import Job
from shoal.optim.noise import Parts
from shoal.optim.optimizers import hidden_weights, make_optimizer
from shoal.optim.schedules import learning_rate
from shoal.state.layout import Extent, Shard, offsets
from tests.support.engine_tasks import rows

TOTAL = 50


@dataclass
class Outcome:
    """What one member knows at the end of some steps."""

    parameters: dict[str, torch.Tensor] = field(default_factory=dict)
    shard: Shard | None = None
    norms: list[float] = field(default_factory=list)
    losses: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    """What the engine says of all virtual shards, step by step."""
    notes: list[tuple[int, ...]] = field(default_factory=list)
    """What it heard of all virtual shards, step by step."""
    parts: list[Parts] = field(default_factory=list)
    """What the gradients of its passes (exact: of all virtual shards) tell of their noise, step by step."""
    loss: float = 0.0
    """The share-weighted sum of this member's losses in the last step."""
    metrics: dict[str, float] = field(default_factory=dict)
    merged: bool | None = None
    averaged: dict[str, torch.Tensor] = field(default_factory=dict)
    """The weights' moving average, if the job keeps one."""


def train(
    kept: dict[str, Any],
    rank: int,
    size: int,
    job: Job,
    steps: tuple[int, int],
    *,
    state: Sequence[Shard] | None = None,
    merge: bool = True,
    bounds: Sequence[int] | None = None,
) -> Outcome:
    """Steps (done, stop] of `job` in a view of `size`, by an engine that stays in the process from view to view."""
    engine: Engine = kept["engine"] if kept.get("job") == job else make_engine(job, _device(kept))
    kept["job"], kept["engine"] = job, engine
    if state is None:
        engine.reset()
    engine.form(rank, size, bounds)
    try:
        if state is not None:
            engine.write_state(reader(state), state[0].scalars, state[0].buffers)
        outcome = Outcome()
        for step in range(steps[0] + 1, steps[1] + 1):
            outcome.loss = run_step(engine, job, rank, size, step, merge=merge, bounds=bounds)
            mine = (bounds or even_bounds(job.batch.virtual_shards, size))[rank : rank + 2]
            engine.note([note_of(step, shard) for shard in range(*mine)])
            outcome.norms.append(
                engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL)),
            )
            outcome.losses.append(engine.step_losses())
            outcome.notes.append(engine.step_notes())
            outcome.parts.append(engine.step_parts())
        outcome.shard = engine.read_state()
        outcome.metrics = engine.evaluate(rows(0, 32, device=engine.device))
        if job.optimizer.ema is not None:
            with engine.averaged():
                outcome.averaged = engine.full_parameters()
        outcome.parameters = engine.full_parameters()
        outcome.merged = engine.merges_shards
        return outcome
    finally:
        engine.leave()


def note_of(step: int, shard: int) -> int:
    """64 bits that are no float of everyday."""
    return (1 << 63 | step << 40 | 0x7FF << 12 | shard) ^ (shard % 2 and (1 << 64) - 1)


def run_step(
    engine: Engine,
    job: Job,
    rank: int,
    size: int,
    step: int,
    *,
    merge: bool = True,
    bounds: Sequence[int] | None = None,
) -> float:
    """The micro-batches of one step; returns this member's part of the loss. `bounds`: see `plan`; default even."""
    batch = job.batch
    micro_batches = plan(
        bounds or even_bounds(batch.virtual_shards, size),
        rank,
        merge=merge and bool(engine.merges_shards),
        shard_size=batch.shard_size,
        micro_limit=batch.micro_limit,
        equal=engine.equal_micro_batches,
    )
    loss = 0.0
    for i, micro in enumerate(micro_batches):
        origin = (step - 1) * batch.size
        low, high = (origin + s * batch.shard_size for s in micro.shards)
        seed_shard(job.seed, step, micro.shards[0])
        loss += micro.share * float(
            engine.micro_step(rows(low, high, device=engine.device), micro.share, last=i == len(micro_batches) - 1)
        )
    return loss


def reader(shards: Sequence[Shard]) -> ReadState:
    """A state that is held in parts, as one that can be read anywhere. Missing elements read as NaN."""
    whole: dict[tuple[str, str], torch.Tensor] = {}
    lengths: dict[str, int] = {}
    for shard in shards:
        for extent in shard.extents:
            lengths[extent.name] = max(lengths.get(extent.name, 0), extent.stop)
    for shard in shards:
        for key, packed in shard.tensors.items():
            for extent, at in zip(shard.extents, offsets(shard.extents), strict=True):
                target = whole.setdefault((key, extent.name), torch.full((lengths[extent.name],), float("nan")))
                target[extent.start : extent.stop] = packed[at : at + extent.count]

    def read(key: str, extents: Sequence[Extent]) -> torch.Tensor:
        parts = [whole[key, e.name][e.start : e.stop] for e in extents]
        return torch.cat(parts) if parts else torch.empty(0)

    return read


def plain(job: Job, steps: int, *, by_shard: bool = False) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same job as a loop in plain torch, in one process: parameters and gradient norms.

    `by_shard`: one pass per virtual shard with its own random stream, for models that draw or mix; otherwise one pass
    over the whole batch. Running statistics follow the rule of `shoal.engines.buffers`.
    """
    model = build_model(job).train()
    cpu = torch.device("cpu")
    optimizer = make_optimizer(job.optimizer, model.named_parameters(), cpu, hidden_weights(model))
    parameters = [p for p in model.parameters() if p.requires_grad]
    shards = job.batch.virtual_shards if by_shard else 1
    per_pass = job.batch.size // shards
    norms = []
    for step in range(1, steps + 1):
        began = {name: b.clone() for name, b in model.named_buffers()}
        ended = {name: torch.zeros_like(b) for name, b in model.named_buffers()}
        for shard in range(shards):
            for name, buffer in model.named_buffers():
                buffer.copy_(began[name])
            seed_shard(job.seed, step, shard)
            low = (step - 1) * job.batch.size + shard * per_pass
            with torch.autocast("cpu", torch.bfloat16, enabled=job.engine.precision == "bf16"):
                loss = job.task.loss(model, rows(low, low + per_pass))
            (loss / shards).backward()
            for name, buffer in model.named_buffers():
                ended[name] = ended[name] + buffer / shards if buffer.is_floating_point() else buffer.clone()
        for name, buffer in model.named_buffers():
            buffer.copy_(ended[name])
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(parameters, job.optimizer.clip_norm or float("inf"), foreach=True)
        norms.append(float(norm))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(job.optimizer.lr, job.schedule, step / TOTAL)
        optimizer.step()
        optimizer.zero_grad()
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}, norms


def _device(kept: dict[str, Any]) -> torch.device:
    return torch.device("cuda", kept["place"]) if kept.get("device_type") == "cuda" else torch.device("cpu")


def forget(kept: dict[str, Any], rank: int, size: int) -> None:
    """Drop the engine that stayed in this process."""
    kept.pop("engine", None)
    kept.pop("job", None)
    gc.collect()
