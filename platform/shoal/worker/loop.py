"""The training loop of one member in one view. Everything that every member does, in order, on one screen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from shoal.engines.micro_batches import plan
from shoal.engines.protocol import Engine
from shoal.engines.randomness import seed_shard
from shoal.errors import TaskError
from shoal.job import Job
from shoal.membership.messages import StepReport
from shoal.membership.view import Lease, MemberId, View
from shoal.optim.schedules import learning_rate
from shoal.state.layout import Shard
from shoal.state.writer import AsyncShardWriter
from shoal.worker.batches import to_device
from shoal.worker.courier import Courier
from shoal.worker.evaluation import Evaluator
from shoal.worker.loader import Loader, Work


@dataclass(frozen=True, slots=True)
class Place:
    """Where this member stands in the view, and where the run ends."""

    view: View
    member: MemberId
    total_steps: int
    checkpoint_uri: str

    @property
    def rank(self) -> int:
        return self.view.rank(self.member)


@dataclass(slots=True)
class Loop:
    """The collaborators of one member in one view."""

    job: Job
    engine: Engine
    place: Place
    loader: Loader
    courier: Courier
    evaluator: Evaluator | None
    writer: AsyncShardWriter
    export: Callable[[Engine], None]
    _mark: float = 0.0

    def run(self, step: int) -> int:
        """Train from after `step` until the view ends; returns the last step done. Every line: all members."""
        evaluated = written = step
        self._mark = time.perf_counter()
        while (work := self.loader.next()) is not None:
            step = work.lease.step
            self.courier.report(self._train(work))
            if work.lease.evaluate:
                evaluated = self._evaluate(step)
            if work.lease.checkpoint:
                written = self._checkpoint(step)
        end = self.courier.end
        assert end is not None, "leases end only with the view's last word"
        assert end.step == step, f"the view ends after step {end.step}, this member is at {step}"
        if end.evaluate and evaluated != step:
            self._evaluate(step)
        if end.checkpoint and written != step:
            self._checkpoint(step, final=True)
        if end.export:
            self.export(self.engine)  # rank 0 writes
        return step

    def _train(self, work: Work) -> StepReport:
        lease, job = work.lease, self.job
        rate = learning_rate(job.optimizer.lr, job.schedule, lease.step, self.place.total_steps)
        losses = self._accumulate(work)
        norm = self.engine.update(rate)
        said = list(zip((n for n, _ in losses), torch.stack([x for _, x in losses]).tolist(), strict=True))
        if not math.isfinite(norm):
            raise TaskError(_not_finite(lease, said, norm, rate))
        times, began = self.engine.times, self._mark
        # From the end of the step before to the end of this one, so that the sum over steps is wall-clock time. What a
        # checkpoint takes from training is in it; evaluation is not.
        self._mark = time.perf_counter()
        return StepReport(
            step=lease.step,
            losses=tuple(said),
            grad_norm=norm,
            lr=rate,
            step_s=self._mark - began,
            data_wait_s=self.loader.waited_s,
            compute_s=times.compute_s,
            communicate_s=times.communicate_s,
            update_s=times.update_s,
        )

    def _accumulate(self, work: Work) -> list[tuple[int, torch.Tensor]]:
        """Gradients of this member's virtual shards; returns (shards covered, mean loss over them) in shard order."""
        batch, engine, lease = self.job.batch, self.engine, work.lease
        micro_batches = plan(
            batch.virtual_shards,
            self.place.view.size,
            self.place.rank,
            merge=bool(engine.merges_shards),
            shard_size=batch.shard_size,
            micro_limit=batch.micro_limit,
            equal=engine.equal_micro_batches,
        )
        losses = []
        for i, micro in enumerate(micro_batches):
            first, last = micro.shards
            low, high = ((s - lease.shards[0]) * batch.shard_size for s in (first, last))
            seed_shard(self.job.seed, lease.step, first)
            loss = engine.micro_step(
                to_device(work.samples, low, high, engine.device), micro.share, last=i == len(micro_batches) - 1
            )
            if micro.share:
                losses.append((last - first, loss))
        return losses

    def _evaluate(self, step: int) -> int:
        if self.evaluator is not None:
            self.courier.report(self.evaluator.run(self.engine, step))
        self._mark = time.perf_counter()
        return step

    def _checkpoint(self, step: int, *, final: bool = False) -> int:
        # The copy to host memory is what training waits for; the writing happens beside it.
        shard: Shard = self.engine.read_state()
        self.writer.submit(step, shard, self.place.checkpoint_uri, self.place.rank, self.place.view.size, final=final)
        return step


def _not_finite(lease: Lease, losses: list[tuple[int, float]], norm: float, rate: float) -> str:
    shown = ", ".join(f"{loss:g}" for _, loss in losses)
    return (
        f"step {lease.step}: the gradient is not finite: norm {norm} (losses of virtual shards "
        f"{lease.shards[0]}..{lease.shards[1] - 1}: {shown}; learning rate {rate:g}). The step was not applied. "
        f"Lower optimizer.lr, set optimizer.clip_norm, lengthen schedule.warmup, or look for a division by zero or a "
        f"log of zero in the task's loss; the samples are positions {lease.start}..{lease.stop - 1} of the data order"
    )
