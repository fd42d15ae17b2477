"""Steps that choose their samples, through an engine and as a plain torch loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from shoal.data.selecting import choose
from shoal.engines import make_engine
from shoal.engines.factory import build_model
from shoal.engines.micro_batches import even_bounds, plan
from shoal.engines.randomness import seed_shard
from shoal.job import Data, Job, Selection
from shoal.job.steps import positions_of
from shoal.membership.view import Lease
from shoal.optim.optimizers import make_optimizer
from shoal.optim.schedules import learning_rate
from shoal.worker.batches import to_device
from shoal.worker.loader import Samples, Work
from shoal.worker.selecting import Selector
from tests.support.engine_runs import TOTAL, Outcome
from tests.support.engine_tasks import rows


def selecting(job: Job, **fields: Any) -> Job:
    """`job` with a selection that ends after its fifth step."""
    return replace(job, data=Data(train="none", selection=Selection(until=5 / TOTAL, **fields)))


def columns(start: int, stop: int) -> Samples:
    """The samples at positions [start, stop), as a loader has them."""
    return {name: column.numpy() for name, column in rows(start, stop).items()}


def work_of(job: Job, step: int, shards: tuple[int, int]) -> Work:
    """What a member that has `shards` reads in `step`."""
    first, stop = positions_of(job, TOTAL).of(step)
    size = (stop - first) // job.batch.virtual_shards
    start, stop = (first + s * size for s in shards)
    return Work(Lease(1, step, shards, start, stop, places=job.batch.shard_size), columns(start, stop), "")


def train_selecting(
    kept: dict[str, Any], rank: int, size: int, job: Job, steps: int, *, bounds: Sequence[int] | None = None
) -> Outcome:
    """`steps` steps of `job` in a view of `size`; `Outcome.metrics` has the sum of all scores of this member."""
    batch, cuts = job.batch, tuple(bounds or even_bounds(job.batch.virtual_shards, size))
    engine = make_engine(job, torch.device("cpu"))
    engine.form(rank, size, bounds)
    selector, outcome, total = Selector(job, cuts, rank), Outcome(), 0.0
    try:
        for step in range(1, steps + 1):
            selected = selector.select(engine, work_of(job, step, (cuts[rank], cuts[rank + 1])), lambda: None)
            total += sum(float(part.double().sum()) for part in selected.scores)
            micro_batches = plan(
                cuts, rank, merge=bool(engine.merges_shards), shard_size=batch.shard_size,
                micro_limit=batch.micro_limit, equal=engine.equal_micro_batches,
            )  # fmt: skip
            for i, micro in enumerate(micro_batches):
                low, high = ((s - cuts[rank]) * batch.shard_size for s in micro.shards)
                seed_shard(job.seed, step, micro.shards[0])
                engine.micro_step(
                    to_device(selected.samples, low, high, engine.device),
                    micro.share,
                    last=i == len(micro_batches) - 1,
                    weights=None if selected.weights is None else selected.weights[low:high],
                )
            outcome.norms.append(engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL)))
            outcome.losses.append(engine.step_losses())
        outcome.shard, outcome.metrics = engine.read_state(), {"scores": total}
        outcome.parameters, outcome.merged = engine.full_parameters(), engine.merges_shards
        return outcome
    finally:
        engine.leave()


def plain_selecting(job: Job, steps: int) -> tuple[dict[str, torch.Tensor], list[float], float]:
    """The same by the definition, shard by shard in one process: parameters and buffers, norms, sum of all scores."""
    model = build_model(job).train()
    optimizer = make_optimizer(job.optimizer, model.named_parameters(), torch.device("cpu"))
    shards, places, norms, total = job.batch.virtual_shards, job.batch.shard_size, [], 0.0
    for step in range(1, steps + 1):
        began = {name: b.clone() for name, b in model.named_buffers()}
        ended = {name: torch.zeros_like(b) for name, b in model.named_buffers()}
        for shard in range(shards):
            work = work_of(job, step, (shard, shard + 1))
            samples = {name: torch.from_numpy(column) for name, column in work.samples.items()}
            weights = torch.ones(places)
            for name, buffer in model.named_buffers():
                buffer.copy_(began[name])
            if len(samples["x"]) > places:
                assert job.data.selection is not None
                model.eval()
                with torch.no_grad():
                    scores = job.task.sample_losses(model, samples).double().numpy()
                model.train()
                total += float(np.sum(scores))
                chosen = choose(job.data.selection, scores, places, seed=job.seed, first=work.lease.start)
                samples = {name: column[chosen.places] for name, column in samples.items()}
                weights = weights if chosen.weights is None else torch.from_numpy(chosen.weights)
            seed_shard(job.seed, step, shard)
            ((weights * job.task.sample_losses(model, samples)).mean() / shards).backward()
            for name, buffer in model.named_buffers():
                ended[name] = ended[name] + buffer / shards if buffer.is_floating_point() else buffer.clone()
        for name, buffer in model.named_buffers():
            buffer.copy_(ended[name])
        limit = job.optimizer.clip_norm or float("inf")
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(job.optimizer.lr, job.schedule, step / TOTAL)
        optimizer.step()
        optimizer.zero_grad()
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}, norms, total
