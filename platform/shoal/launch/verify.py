"""`shoal verify`: compute a stretch of a recorded run again, beside it, and compare."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoal.audit.replay import Difference, commits_of, compare
from shoal.coordinator.status import Display, Outcome
from shoal.errors import CheckpointError, ConfigError, TrainingFailed
from shoal.job import Job
from shoal.job.store import job_digest, load_job
from shoal.launch.api import RunOptions, run_job
from shoal.run_folder import RunFolder
from shoal.state.storage import Storage
from shoal.state.store import CheckpointInfo, CheckpointStore, read_manifest
from shoal.tracking.ledger import of_kind, scan
from shoal.tracking.runs import died, summarize

SCRATCH = ".verify"
"""Folder beside the runs that holds what is computed again, while it is; `shoal runs` does not look there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """What to compute again, and where."""

    steps: tuple[int, int] | None = None
    """First and last step; None: all that were committed."""
    workers: int | None = None
    """None: as many as the job allows."""
    tolerance: float | None = None
    """Relative difference that counts as equal; None: every bit must be."""
    address: str | None = None
    pool: str | None = None
    """The pool that lends the workers; None: the cluster gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """What is computed again: steps first..last, from the state after `first - 1`."""

    first: int
    last: int
    source: CheckpointInfo | None
    """None: the initial weights."""
    goal: CheckpointInfo | None
    """The run's checkpoint after `last`; None: it has none."""

    @property
    def text(self) -> str:
        start = f"the checkpoint of step {self.source.step}" if self.source else "the initial weights"
        return f"steps {self.first} to {self.last} from {start}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What came out."""

    run_id: str
    stretch: Stretch
    workers: str
    tolerance: float | None
    equal: int
    partial: int
    difference: Difference | None
    state: tuple[str, str] | None
    """SHA-256 of the state after the last step, recorded and computed again; None: there is no checkpoint of it."""

    @property
    def identical(self) -> bool:
        """Nothing differs."""
        return self.difference is None and (self.state is None or self.state[0] == self.state[1])

    def lines(self) -> list[str]:
        """What people read."""
        same = "identical" if self.tolerance is None else f"equal within {self.tolerance:g}"
        out = [f"{self.run_id}: {same if self.identical else 'NOT ' + same}"]
        out.append(f"  again     {self.stretch.text}, on {self.workers}")
        if self.difference is not None:
            out.append(f"  differs   {self.difference.text}; it is the first one, the {self.equal} steps before agree")
        else:
            out.append(f"  numbers   loss, learning rate and gradient norm of all {self.equal} steps are {same}")
        if self.partial:
            out.append(
                f"  partly    not all numbers of {self.partial} steps are on the record: members died before they told"
            )
        if self.state is not None:
            was, now = self.state
            verdict = f"SHA-256 {was}" if was == now else f"differs: SHA-256 was {was}, now {now}"
            out.append(f"  state     {verdict} (parameters and optimizer state after step {self.stretch.last})")
        elif self.difference is None and self.tolerance is None:
            out.append(f"  state     not compared: the run keeps no checkpoint of step {self.stretch.last}")
        return out

    def to_json(self) -> dict[str, Any]:
        """What machines read."""
        return {
            "run_id": self.run_id,
            "identical": self.identical,
            "first": self.stretch.first,
            "last": self.stretch.last,
            "from_checkpoint": self.stretch.source.uri if self.stretch.source else None,
            "workers": self.workers,
            "tolerance": self.tolerance,
            "equal_steps": self.equal,
            "partial_losses": self.partial,
            "difference": asdict(self.difference) if self.difference else None,
            "state": dict(zip(("recorded", "again"), self.state, strict=True)) if self.state else None,
        }


def verify(folder: RunFolder, options: VerifyOptions, display: Display) -> Verified:
    """Compute a stretch of the run in `folder` again and compare it with the record.

    The run itself is not touched, nothing is recorded in MLflow, and what was computed is deleted. `display` sees the
    computation. Raises ConfigError if the run cannot be computed again, or only to rounding and no tolerance is given;
    TrainingFailed if the computation breaks.
    """
    job = _job(folder, options)
    stretch = choose(folder, job, options.steps)
    recorded = commits_of((e for e, _ in scan(folder.ledger)), stretch.first, stretch.last)
    low, high = job.workers.min, job.workers.max
    workers = f"{low} to {high} workers" if low < high else "1 worker" if high == 1 else f"{high} workers"
    display.event("info", f"computing {stretch.text} again, on {workers}")
    with _scratch(folder, job) as scratch:
        outcome = run_job(
            job,
            options=RunOptions(
                runs_dir=folder.root, scratch=scratch.root, name=scratch.run_id, address=options.address,
                start_from=stretch.source, until_step=stretch.last, pool=options.pool, replay=folder.ledger,
            ),
            display=display,
        )  # fmt: skip
        _require_done(outcome, stretch)
        again = commits_of((e for e, _ in scan(scratch.ledger)), stretch.first, stretch.last)
        found = compare(recorded, again, options.tolerance)
        return Verified(
            run_id=folder.run_id, stretch=stretch, workers=workers, tolerance=options.tolerance, equal=found.equal,
            partial=found.partial, difference=found.difference,
            state=None if options.tolerance else _states(stretch, scratch),
        )  # fmt: skip


def _job(folder: RunFolder, options: VerifyOptions) -> Job:
    """The recorded job, as it is computed again: other workers, no evaluation, no checkpoint but the last."""
    said, job = folder.read(), load_job(folder)
    if job.numerics != "exact" and options.tolerance is None:
        raise ConfigError(
            f"run {folder.run_id} has numerics={job.numerics}: computed again, its numbers agree to rounding, not bit "
            f"by bit; compare with --tolerance 1e-3, or train with --set numerics=exact"
        )
    if said.get("job_digest") not in (None, job_digest(job)):
        raise ConfigError(
            f"the job of {folder.run_id} is not what it was: its digest is {job_digest(job)[:12]}, the run says "
            f"{said['job_digest'][:12]}; use the version of Shoal that made the run"
        )
    if options.workers is not None:
        job = replace(job, workers=replace(job.workers, min=options.workers, max=options.workers))
    return replace(
        job,
        evaluation=replace(job.evaluation, every=None),
        checkpoints=replace(job.checkpoints, every=None, export=False, keep_best=None),
    )


def choose(folder: RunFolder, job: Job, steps: tuple[int, int] | None) -> Stretch:
    """The stretch that covers `steps`, from the nearest state at hand. ConfigError if there is no such stretch."""
    said = folder.read()
    known = {i.step: i for i in CheckpointStore(said.get("checkpoint_uri") or folder.checkpoints).list()}
    origin = _origin(folder, said)
    begin, done = origin.step if origin else 0, summarize(folder, said).step
    first, last = steps or (begin + 1, done)
    last = min(last, done)
    if not begin < first <= last:
        there = f"steps {begin + 1} to {done}" if done > begin else "no committed step yet"
        raise ConfigError(
            f"run {folder.run_id} has {there}, not {first} to {last}; name a stretch of them with --steps"
        )
    before = max((s for s in known if s < first), default=begin)
    if before not in known and origin is not None:
        try:
            read_manifest(origin.uri)
        except CheckpointError as error:
            kept = ", ".join(str(s + 1) for s in sorted(known)) or "none"
            raise ConfigError(
                f"run {folder.run_id} has no checkpoint before step {first}, and the one that it began with cannot be "
                f"read ({error}); steps that can be begun with: {kept}"
            ) from None
    return Stretch(first=before + 1, last=last, source=known.get(before) or origin, goal=known.get(last))


def _origin(folder: RunFolder, said: dict[str, Any]) -> CheckpointInfo | None:
    """The checkpoint of another run that this one began with; the ledger's first `resume` says of which step."""
    uri = said.get("forked_from")
    first = next(of_kind(folder.ledger, "resume"), None) if uri else None
    return CheckpointInfo(int(first["from_step"]), str(uri), {}, 0.0) if first else None


@contextmanager
def _scratch(folder: RunFolder, job: Job) -> Iterator[RunFolder]:
    """A run folder that nobody lists, gone after the block, and its checkpoints with it."""
    root = folder.root / SCRATCH
    for left in died(root):  # by verifications that were killed
        shutil.rmtree(left.path, ignore_errors=True)
    scratch = RunFolder(root / f"verify-{folder.run_id}-{os.getpid()}")
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch.path, ignore_errors=True)
        if job.checkpoints.path:
            Storage(job.checkpoints.path).delete_folder(scratch.run_id)
        if root.is_dir() and not any(root.iterdir()):
            root.rmdir()


def _require_done(outcome: Outcome, stretch: Stretch) -> None:
    if outcome.status == "failed" or outcome.step < stretch.last:
        raise TrainingFailed(
            f"the stretch could not be computed again: {outcome.status} after step {outcome.step} of {stretch.last}"
            + (f": {outcome.error}" if outcome.error else "")
        )


def _states(stretch: Stretch, scratch: RunFolder) -> tuple[str, str] | None:
    """SHA-256 of the state after the stretch, recorded and computed again."""
    again = CheckpointStore(scratch.read()["checkpoint_uri"]).latest()
    if stretch.goal is None or again is None or again.step != stretch.last:
        return None
    from shoal.state.digest import state_digest
    from shoal.state.reader import CheckpointReader

    with CheckpointReader(stretch.goal.uri) as was, CheckpointReader(again.uri) as now:
        return state_digest(was), state_digest(now)
