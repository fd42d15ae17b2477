"""The training loop of one member in one view. Everything that every member does, in order, on one screen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from shoal.data.mixture import Mixture
from shoal.digests import shown, split
from shoal.engines.micro_batches import plan
from shoal.engines.protocol import Engine
from shoal.engines.randomness import seed_shard
from shoal.errors import NOT_FINITE, TaskError
from shoal.job import Job
from shoal.membership.messages import Held, Progress, StepReport, ViewOrder
from shoal.membership.view import Lease, MemberId
from shoal.optim.batch_rules import rate_scale
from shoal.optim.schedules import learning_rate
from shoal.state.layout import Shard
from shoal.state.writer import AsyncShardWriter
from shoal.worker.batches import to_device
from shoal.worker.courier import Courier
from shoal.worker.evaluation import Evaluator
from shoal.worker.loader import Loader, Work
from shoal.worker.selecting import Selector
from shoal.worker.snapshots import Sender, Snapshots


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the run ends and what it leaves."""

    checkpoint_uri: str
    export: Callable[[Engine], None]


@dataclass(slots=True)
class Loop:
    """The collaborators of one member in one view."""

    job: Job
    engine: Engine
    order: ViewOrder
    ends: Ends
    loader: Loader
    courier: Courier
    evaluator: Evaluator | None
    mixture: Mixture | None
    selector: Selector
    writer: AsyncShardWriter
    snapshots: Snapshots
    sender: Sender | None
    """None: no snapshots, because every member holds everything."""
    worked_at: float | None = None
    """When the last step ended, on the clock of `time.perf_counter`."""
    _ticks: int = 0
    _doing: str = "data"
    _step: int = 0
    _mark: float = 0.0
    _held_up: float = 0.0

    def run(self) -> int:
        """Train until the view ends; returns the last step done. Every line: all members, in the same order."""
        step = self._step = self.order.source.step
        evaluated = self._evaluate(step) if self.order.evaluate else None
        written = self._checkpoint(step, self.engine.read_state()) if self.order.checkpoint else None
        self._mark = time.perf_counter()
        while (work := self._next()) is not None:
            step = work.lease.step
            report = self._train(work)
            shard = self._copy(work.lease)
            self._report(report, work.lease, shard)
            if work.lease.evaluate:
                evaluated = self._evaluate(step)
            if work.lease.checkpoint and shard is not None:
                written = self._checkpoint(step, shard)
        end = self.courier.end
        assert end is not None, "leases end only with the view's last word"
        assert end.step == step, f"the view ends after step {end.step}, this member is at {step}"
        if end.evaluate and evaluated != step:
            self._evaluate(step)
        if end.checkpoint and written != step:
            self._checkpoint(step, self.engine.read_state(), final=True)
        if end.snapshot:
            self._hand_over(step, dict(end.keepers).get(self.order.member))
        if end.export:
            self._at("export")
            with self.engine.averaged():
                self.ends.export(self.engine)  # rank 0 writes
        return step

    def progress(self) -> Progress:
        """Where this member is; called by the courier's thread."""
        return Progress(self._step, self._ticks, self._doing)

    def _at(self, doing: str) -> None:
        self._doing = doing
        self._ticks += 1

    def _next(self) -> Work | None:
        self._at("data")
        work = self.loader.next()
        if work is not None:
            self._step = work.lease.step
        return work

    def _train(self, work: Work) -> StepReport:
        lease, job, engine = work.lease, self.job, self.engine
        size = lease.shard_size * job.batch.virtual_shards
        rate = learning_rate(job.optimizer.lr, job.schedule, lease.progress[1]) * rate_scale(job, size)
        losses, each = self._accumulate(work)
        self._at("update")
        engine.note(split(work.digests))
        norm = engine.update(rate)
        whole = engine.step_losses()
        digests = shown(engine.step_notes()) if whole else work.digests
        mine = zip((n for n, _ in losses), torch.stack([x for _, x in losses]).tolist(), strict=True)
        said = list(whole or mine)
        if not math.isfinite(norm):
            raise TaskError(_not_finite(lease, said, norm, rate))
        times = engine.times
        return StepReport(
            step=lease.step,
            losses=tuple(said),
            grad_norm=norm,
            lr=rate,
            step_s=0.0,  # known when the snapshot is taken: see `_report`
            data_wait_s=self.loader.waited_s,
            compute_s=times.compute_s,
            communicate_s=times.communicate_s,
            update_s=times.update_s,
            samples=digests,
            sources=self._by_source(lease, each),
            progress=lease.progress[1],
            whole=bool(whole),
            parts=engine.step_parts(),
        )

    def _accumulate(self, work: Work) -> tuple[list[tuple[int, torch.Tensor]], list[torch.Tensor]]:
        """Gradients of this member's virtual shards; returns (shards covered, mean loss over them) in shard order, and
        the own losses of all samples that were read, where they are known."""
        batch, engine, lease, view = self.job.batch, self.engine, work.lease, self.order.view
        micro_batches = plan(
            view.bounds(batch.virtual_shards),
            view.rank(self.order.member),
            merge=bool(engine.merges_shards),
            shard_size=lease.shard_size,
            micro_limit=batch.micro_limit,
            equal=engine.equal_micro_batches,
        )
        selected = self.selector.select(engine, work, lambda: self._at("compute"))
        losses, each, weights = [], list(selected.scores), selected.weights
        for i, micro in enumerate(micro_batches):
            self._at("compute")
            first, last = micro.shards
            low, high = ((s - lease.shards[0]) * lease.shard_size for s in (first, last))
            seed_shard(self.job.seed, lease.step, first)
            loss = engine.micro_step(
                to_device(selected.samples, low, high, engine.device),
                micro.share,
                last=i == len(micro_batches) - 1,
                weights=None if weights is None else weights[low:high],
            )
            if micro.share:
                losses.append((last - first, loss))
                # Where samples are selected, the scores of all candidates: the chosen ones' losses are no fair sample.
                if engine.sample_losses is not None and not selected.scores:
                    each.append(engine.sample_losses)
        return losses, each

    def _by_source(self, lease: Lease, each: list[torch.Tensor]) -> tuple[tuple[int, float], ...]:
        """(samples, sum of their losses) of each source of a mixture."""
        if self.mixture is None or not each:
            return ()
        sources, values = self.mixture.sources(lease.start, lease.stop), torch.cat(each).double().cpu().numpy()
        kinds = len(self.mixture.weights)
        counts, sums = np.bincount(sources, minlength=kinds), np.bincount(sources, values, minlength=kinds)
        return tuple(zip(counts.tolist(), sums.tolist(), strict=True))

    def _copy(self, lease: Lease) -> Shard | None:
        """One host copy of the state serves the snapshot and the checkpoint."""
        if not (lease.checkpoint or (lease.snapshot and self.sender is not None)):
            return None
        self._at("snapshot")
        begun = time.perf_counter()
        shard = self.engine.read_state()
        if lease.snapshot:
            self._snapshot(lease.step, shard)
        self._held_up = time.perf_counter() - begun
        return shard

    def _snapshot(self, step: int, shard: Shard, keeper: MemberId | None = None) -> None:
        if self.sender is not None:
            self.snapshots.keep(self._name(step), shard)
            self.sender.submit(step, shard, keeper)

    def _hand_over(self, step: int, keeper: MemberId | None) -> None:
        """The snapshot at the view's end, with a keeper who stays. A step that has one already needs no other copy."""
        self._at("snapshot")
        made = self._name(step) in self.snapshots.held
        if made and keeper is not None:
            self._snapshot(step, self.snapshots.get(self._name(step)), keeper)
        elif not made:
            self._snapshot(step, self.engine.read_state(), keeper)

    def _name(self, step: int) -> Held:
        return Held(self.order.member, self.order.view.number, step)

    def _report(self, report: StepReport, lease: Lease, shard: Shard | None) -> None:
        # From the end of the step before to the end of this one, so that the sum over steps is wall-clock time. What a
        # snapshot or a checkpoint takes from training is in it; evaluation is not.
        now = time.perf_counter()
        step_s, self._mark, self.worked_at = now - self._mark, now, now
        held_up = self._held_up if shard is not None else 0.0
        self.courier.report(
            replace(report, step_s=step_s, snapshot_s=held_up), urgent=lease.step == self.order.first_step
        )
        self.snapshots.tidy(self.courier.committed, self.order.view.number, self.order.first_step)

    def _evaluate(self, step: int) -> int:
        if self.evaluator is not None:
            self._at("evaluate")
            with self.engine.averaged():
                self.courier.report(self.evaluator.run(self.engine, step, lambda: self._at("evaluate")))
        self._mark = time.perf_counter()
        return step

    def _checkpoint(self, step: int, shard: Shard, *, final: bool = False) -> int:
        # The copy to host memory is what training waits for; the writing happens beside it.
        self._at("checkpoint")
        view = self.order.view
        self.writer.submit(step, shard, self.ends.checkpoint_uri, view.rank(self.order.member), view.size, final=final)
        return step


def _not_finite(lease: Lease, losses: list[tuple[int, float]], norm: float, rate: float) -> str:
    shown = ", ".join(f"{loss:g}" for _, loss in losses)
    return (
        f"step {lease.step}: {NOT_FINITE}: norm {norm} (losses of virtual shards "
        f"{lease.shards[0]}..{lease.shards[1] - 1}: {shown}; learning rate {rate:g}). The step was not applied. "
        f"Lower optimizer.lr, set optimizer.clip_norm, lengthen schedule.warmup, or look for a division by zero or a "
        f"log of zero in the task's loss; the samples are positions {lease.start}..{lease.stop - 1} of the data order"
    )
