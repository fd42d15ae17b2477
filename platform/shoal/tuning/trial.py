"""One trial: a run of the sweep's job with some fields replaced. The one place where trials' runs are started."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.coordinator.status import Outcome, RunStatus
from shoal.errors import CapacityError, ShoalError
from shoal.job import Job
from shoal.job.overrides import apply
from shoal.launch import supervise
from shoal.launch.api import RunOptions, submit_job
from shoal.launch.signals import StopRequests
from shoal.run_folder import RunFolder
from shoal.state.store import CheckpointStore
from shoal.tracking.ledger import is_written
from shoal.tracking.settings import TrialOf
from shoal.tuning.meter import Meter
from shoal.tuning.orders import Ended, Evaluated, Order, Started
from shoal.tuning.space import overrides
from shoal.tuning.trials import Point, Value

if TYPE_CHECKING:
    from shoal.job.recipe import Recipe

POLL_S = 0.25
FREED_S = 60.0
"""How long a run that is to be continued may still be held by processes of a sweep that died just now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What all trials of a sweep have in common."""

    job: Job
    recipe: Recipe | None
    """Where `job` comes from, if it is a recipe's; its files are kept with each run."""
    metric: str
    runs: Path
    cwd: str
    """The folder in which the sweep was started: relative paths in jobs mean this one."""
    tracking_uri: str | None = None
    workers: tuple[int, int] = (1, 1)
    """Fewest and most workers of one trial."""
    pool: str | None = None
    """The pool that lends them."""
    record: TrialOf | None = None
    """The sweep's record, below which those of the trials lie; its `number` is that of none."""
    keep_all: bool = False
    """Keep all checkpoints while the sweep goes on: a population's trials go on from each other's."""


def job_of(base: Base, fields: Mapping[str, Value]) -> Job:
    """The job of a trial. Raises ConfigError if there is no such job."""
    job = apply(base.job, overrides(fields))
    if base.keep_all:
        job = replace(job, checkpoints=replace(job.checkpoints, keep_last=None))
    low, high = base.workers
    return replace(job, workers=replace(job.workers, min=low, max=min(high, job.batch.virtual_shards)))


class Quiet:
    """A display that shows nothing and wakes whoever waits for an evaluation."""

    def __init__(self) -> None:
        self.evaluated = threading.Event()

    def started(self, info: Mapping[str, Any]) -> None:
        pass

    def status(self, status: RunStatus) -> None:
        pass

    def event(self, kind: str, text: str) -> None:
        if kind == "evaluation":
            self.evaluated.set()

    def finished(self, outcome: Outcome) -> None:
        pass


class TrialRun:
    """A trial's run while it goes on, followed from a thread of this process."""

    def __init__(self, base: Base, order: Order) -> None:
        """Start the run, or go on with it, or follow it where it goes on. Raises ShoalError if it cannot be."""
        self.order = order
        self._display = Quiet()
        self._stop = StopRequests()
        self._outcome: Outcome | None = None
        self._over = threading.Event()
        self.run_id = self._begin(base)
        self.folder = RunFolder(base.runs / self.run_id)
        self._meter = Meter(self.folder.ledger, base.metric, before=order.used, after=order.after)
        self._waiting: list[Point] = []
        threading.Thread(target=self._follow, name=f"trial-{order.number}", daemon=True).start()

    @property
    def begun(self) -> Started:
        return Started(self.run_id, str(self.folder.path), int(self.folder.read().get("total_steps") or 0))

    @property
    def over(self) -> bool:
        """Whether the run has ended; there may be evaluations that nobody has asked for yet."""
        return self._over.is_set()

    def next(self) -> Evaluated | Ended:
        """Wait for what comes next. The run's own deadlines see to it that something comes."""
        while True:
            over = self._over.is_set()
            self._display.evaluated.clear()
            self._waiting += self._meter.look()
            if self._waiting:
                return Evaluated(self._waiting.pop(0))
            if over:
                return self._ended()
            self._display.evaluated.wait(POLL_S)

    def let_go(self) -> None:
        """Ask it to end, with a checkpoint unless somebody has asked before, and do not wait."""
        if not self.over:
            stop_run(self.run_id, "its sweep is done with it", save=True)

    # Beginning -------------------------------------------------------------------------------------------------------

    def _begin(self, base: Base) -> str:
        order = self.order
        trial = replace(base.record, number=order.number) if base.record is not None else None
        options = RunOptions(
            runs_dir=base.runs,
            tracking_uri=base.tracking_uri,
            name=order.run_id,
            recipe=base.recipe,
            trial=trial,
            pool=base.pool,
        )
        if order.fork_from is not None:
            options = replace(options, resume=order.fork_from, fork_at=order.fork_at)
        elif (base.runs / order.run_id / "run.json").exists():
            folder = RunFolder(base.runs / order.run_id)
            if self._goes_on(folder) or self._is_done(folder):
                return order.run_id
            options = _continued(options, folder)
        return submit_job(job_of(base, order.fields), options=options, display=self._display)

    def _goes_on(self, folder: RunFolder) -> bool:
        """Whether its coordinator lives, as after the death of the sweep that had started it."""
        return supervise.reach(folder.run_id) is not None and supervise.outcome_of(folder) is None

    def _is_done(self, folder: RunFolder) -> bool:
        self._outcome = outcome = supervise.outcome_of(folder)
        if outcome is not None and outcome.status == "finished":
            return True
        self._outcome = None
        return False

    def _follow(self) -> None:
        import ray

        if self._outcome is None:
            try:
                post = supervise.reach(self.run_id)
                if post is None:
                    raise CapacityError(f"run {self.run_id} has no coordinator any more")
                ended = supervise.follow(post, self._display, self._stop)
                assert ended is not None, "nobody here asks twice"
                self._outcome = supervise.outcome(self.folder, ended, 130)
                post.let_go()
            except (ray.exceptions.RayError, ShoalError) as error:
                self._outcome = supervise.died(self.folder, error)
        self._over.set()

    def _ended(self) -> Ended:
        outcome = self._outcome
        assert outcome is not None, "set before it is over"
        if outcome.status == "finished":
            return Ended("finished")
        if outcome.status == "stopped":
            return Ended("interrupted", str(self.folder.read().get("reason") or "its run was stopped"))
        return Ended("failed", outcome.error or "the run failed without a word")


def _continued(options: RunOptions, folder: RunFolder) -> RunOptions:
    """Go on from the run's last checkpoint; if it has none, begin anew beside it."""
    deadline = time.monotonic() + FREED_S
    while is_written(folder.ledger) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    if CheckpointStore(folder.read().get("checkpoint_uri") or folder.checkpoints).latest() is not None:
        return replace(options, resume=folder.run_id)
    taken, number = {p.name for p in folder.root.glob(f"{folder.run_id}*")}, 2
    while f"{folder.run_id}-{number}" in taken:
        number += 1
    return replace(options, name=f"{folder.run_id}-{number}")


def stop_run(run_id: str, reason: str, *, save: bool) -> None:
    """Ask the run's coordinator, if it has one, to end at the next boundary. Does not wait."""
    post = supervise.reach(run_id)
    if post is not None:
        post.ask("stop", reason, save)


def kill_run(run_id: str) -> None:
    """End the run at once, as it is."""
    post = supervise.reach(run_id)
    if post is not None:
        post.end()
