"""From members' reports to commits: a step is committed when it cannot be lost any more. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean
from typing import Generic, TypeVar

from shoal.digests import step_digest
from shoal.membership.course import Course
from shoal.membership.leasing import Due, LastDue
from shoal.membership.messages import EvaluationReport, Reports, ShardWritten, StepReport, ViewEnd
from shoal.membership.view import MemberId, View
from shoal.optim.noise import NO_PARTS, Measured, measured


@dataclass(frozen=True, slots=True)
class Commit:
    """One step as the record keeps it. Times: the slowest member's step, and the mean of the members' parts."""

    step: int
    view: int
    samples: tuple[int, int]
    progress: float
    """Share of the budget that is used when it is done."""
    loss: float
    lr: float
    grad_norm: float
    workers: int
    step_s: float
    data_wait_s: float
    compute_s: float
    communicate_s: float
    update_s: float
    covered: int
    """Virtual shards whose loss is in `loss`; less than all if a member was lost before it could say its own. 0: nobody
    who could speak of the step is left; it is done nevertheless, and its numbers are NaN."""
    samples_digest: str
    """blake2b-8 over the members' digests in shard order, in hex; empty if a part is missing."""
    sources: tuple[tuple[int, float], ...] = ()
    """Of a mixture, source by source: (samples, their mean loss; NaN if there was none), as far as it is known."""
    batch: int = 0
    """Samples that were trained on."""
    noise: Measured | None = None
    """What was measured of the gradient's noise; None: nothing could be."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A whole evaluation of the state after `step`: means over all samples, seconds of the slowest member."""

    step: int
    means: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint of which every member's part is durable (or failed), parts in rank order."""

    step: int
    parts: tuple[ShardWritten, ...]


@dataclass(frozen=True, slots=True)
class Progressed:
    """What became final, each thing once and in order of steps."""

    commits: tuple[Commit, ...] = ()
    evaluations: tuple[Evaluated, ...] = ()
    written: tuple[Written, ...] = ()
    stable: int = 0
    """Last step that survives the loss of any one member; sharded engines only, else what is committed."""


T = TypeVar("T")


class Gathering(Generic[T]):
    """Collects one thing per member and step. What a step already has is not taken twice."""

    def __init__(self, members: Sequence[MemberId]) -> None:
        self._members = dict.fromkeys(members)
        self._open: dict[int, dict[MemberId, T]] = {}
        self._done: set[int] = set()

    def add(self, member: MemberId, step: int, thing: T) -> None:
        """`member` says `thing` of `step`; what it said before of that step stands."""
        assert member in self._members, f"{member} is not in {list(self._members)}"
        if step not in self._done:
            self._open.setdefault(step, {}).setdefault(member, thing)

    def whole(self, step: int) -> bool:
        """Whether every member has spoken of `step`."""
        return len(self._open.get(step, {})) == len(self._members)

    def whole_until(self, last: int) -> list[int]:
        """Steps up to `last` of which every member has spoken and that are not taken."""
        return sorted(s for s in self._open if s <= last and self.whole(s))

    def take(self, step: int) -> list[T]:
        """What was said of `step`, in rank order; the step is done with."""
        self._done.add(step)
        return self.pop(step)

    def pop(self, step: int) -> list[T]:
        """As `take`, but without a mark; the caller knows by itself which steps are done with."""
        said = self._open.pop(step, {})
        return [said[m] for m in self._members if m in said]

    def taken(self, step: int) -> bool:
        """What was said of `step` has been taken."""
        return step in self._done

    def mark(self, steps: Iterable[int]) -> None:
        """These steps were taken by somebody else."""
        self._done.update(steps)


class Tally:
    """All that is gathered in one view. Reports of other views and of strangers are the caller's to ignore.

    What is final: with a replicated engine a step that all members have applied. With a sharded one only what is
    stable: all members have applied it, and it or a later state lies whole with the members and whole with their
    buddies, so that no single loss takes it away. Evaluations and checkpoints of a step wait until the step is final.
    Nothing is final before the view is `safe`. `last_due` says what was to be evaluated and saved (`Leasing.last_due`).
    """

    def __init__(
        self,
        view: View,
        *,
        first_step: int,
        course: Course,
        sharded: bool = False,
        last_due: Callable[[int], LastDue] | None = None,
    ) -> None:
        self.view = view
        self.first_step = first_step
        self.committed = first_step - 1
        self.stable = first_step - 1
        self.reported = first_step - 1
        self.safe = False
        """The state with which the view began survives the loss of any one member: all have taken it over (replicated),
        or a snapshot made in this view is with the buddies (sharded)."""
        self.unsaid = Due()
        """What is owed for the state with which the view began, though its order did not say so."""
        self._course = course
        self._sharded = sharded
        self._last_due = last_due or (lambda _: LastDue())
        self._commits: list[Commit] = []
        self._steps: Gathering[StepReport] = Gathering(view.members)
        self._evaluations: Gathering[EvaluationReport] = Gathering(view.members)
        self._written: Gathering[ShardWritten] = Gathering(view.members)
        self._kept: dict[int, set[MemberId]] = {}
        """Of each step from the last stable one on: whose snapshot is with the buddy."""
        self._members = frozenset(view.members)
        self._entered: set[MemberId] = set()

    def resume_at(self, committed: int, *, evaluated: Collection[int] = (), saved: Collection[int] = ()) -> None:
        """Take over from a coordinator that was lost: what the ledger holds of this view is not handed out again.

        `committed`: the last step in the ledger; `evaluated`, `saved`: steps whose evaluation or checkpoint is there.
        """
        self.safe = committed >= self.first_step
        self.committed = self.reported = self.stable = max(self.committed, committed)
        self._evaluations.mark(evaluated)
        self._written.mark(saved)

    def add(self, reports: Reports) -> Progressed:
        """Hear what a member says, once or repeatedly. Returns what became final by it."""
        self._hear(reports)
        if not self.safe:
            return Progressed(stable=self.stable)
        while self._steps.whole(self.committed + 1) and (not self._sharded or self.committed < self.stable):
            self._commit_next()
        return self._final()

    def settle(self, ends: Iterable[ViewEnd], step: int) -> Progressed:
        """After the view: everything up to `step`, with what the members could still say.

        `step` is where the next view goes on. Call this when that view is `safe`, since until then a further loss may
        still cost the step (`Account` does). Steps come with the reports of those who could report: `Commit.covered`.
        """
        for end in ends:
            if end.reports is not None and end.reports.view == self.view.number:
                self._hear(end.reports)
        while self.committed < step:
            self._commit_next()
        return self._final()

    def owes(self, step: int, *, goes_on: bool) -> tuple[bool | None, bool | None]:
        """Whether the last (evaluation, checkpoint) due up to `step` is still to be done; None: none was due.

        `goes_on`: what waits here to become final still can, as steps of this view stay part of the run.
        """
        due = self._last_due(step)
        evaluation = _missing(due.evaluate, self._evaluations, goes_on)
        checkpoint = _missing(due.checkpoint, self._written, goes_on)
        return (
            self.unsaid.evaluate or None if evaluation is None else evaluation,
            self.unsaid.checkpoint or None if checkpoint is None else checkpoint,
        )

    def _hear(self, reports: Reports) -> None:
        member = reports.member
        assert member in self._members, f"{member} is not in {self.view.members}"
        for report in reports.steps:
            if report.step > self.committed:
                self.reported = max(self.reported, report.step)
                self._steps.add(member, report.step, report)
        for evaluation in reports.evaluations:
            self._evaluations.add(member, evaluation.step, evaluation)
        for part in reports.written:
            self._written.add(member, part.step, part)
        if reports.entered is not None:
            self._entered.add(member)
        if self._sharded:
            self._keep(member, (k.step for k in reports.snapshots))
        else:
            # Nobody can finish a step before all have entered, though the word of it may be faster.
            entered = len(self._entered) == self.view.size
            self.safe = self.safe or entered or self._steps.whole(self.committed + 1)

    def _keep(self, member: MemberId, steps: Iterable[int]) -> None:
        # Not the least of each member's latest: a state is whole only if all parts are of the same step.
        whole = self.stable if self.safe else self.stable - 1
        for step in steps:
            if step >= self.stable and member not in (kept := self._kept.setdefault(step, set())):
                kept.add(member)
                whole = max(whole, step if len(kept) == self.view.size else whole)
        if whole >= self.stable:
            self.safe, self.stable = True, whole
            self._kept = {step: kept for step, kept in self._kept.items() if step >= whole}

    def _final(self) -> Progressed:
        commits, self._commits = tuple(self._commits), []
        evaluations = [_evaluated(s, self._evaluations.take(s)) for s in self._evaluations.whole_until(self.committed)]
        written = [Written(s, tuple(self._written.take(s))) for s in self._written.whole_until(self.committed)]
        return Progressed(commits, tuple(evaluations), tuple(written), self.stable)

    def _commit_next(self) -> None:
        self.committed += 1
        self._commits.append(self._commit(self.committed, self._steps.pop(self.committed)))
        if not self._sharded:
            self.stable = self.committed

    def _commit(self, step: int, said: Sequence[StepReport]) -> Commit:
        # Rank order is shard order, so the loss is summed in the same order on any number of workers.
        of_all = next((r for r in said if r.whole), None)
        parts = of_all.losses if of_all is not None else tuple(part for r in said for part in r.losses)
        covered = sum(n for n, _ in parts)
        digests = [of_all.samples] if of_all is not None else [r.samples for r in said]
        parts_of = of_all.parts if of_all is not None else sum((r.parts for r in said), NO_PARTS)
        whole = (of_all is not None or len(said) == self.view.size) and all(digests)
        return Commit(
            step=step,
            view=self.view.number,
            samples=self._course.of(step),
            progress=said[0].progress if said else self._course.progress(step),
            loss=sum(n * loss for n, loss in parts) / covered if covered else nan,
            lr=said[0].lr if said else nan,
            grad_norm=said[0].grad_norm if said else nan,
            workers=self.view.size,
            step_s=max((r.step_s for r in said), default=nan),
            data_wait_s=_mean(r.data_wait_s for r in said),
            compute_s=_mean(r.compute_s for r in said),
            communicate_s=_mean(r.communicate_s for r in said),
            update_s=_mean(r.update_s for r in said),
            covered=covered,
            samples_digest=step_digest(digests) if whole else "",
            sources=_by_source([r.sources for r in said if r.sources]),
            batch=self._course.batch(step),
            noise=measured(parts_of, self._course.batch(step), said[0].grad_norm) if said else None,
        )


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return fmean(found) if found else nan


def _by_source(said: Sequence[tuple[tuple[int, float], ...]]) -> tuple[tuple[int, float], ...]:
    sums = [(sum(n for n, _ in parts), sum(total for _, total in parts)) for parts in zip(*said, strict=True)]
    return tuple((count, total / count if count else nan) for count, total in sums)


def _missing(step: int | None, gathering: Gathering[T], goes_on: bool) -> bool | None:
    if step is None:
        return None
    return not (gathering.taken(step) or (goes_on and gathering.whole(step)))


def _evaluated(step: int, said: Sequence[EvaluationReport]) -> Evaluated:
    samples = sum(r.samples for r in said)
    names = sorted({name for r in said for name in r.sums})
    means = {name: sum(r.sums.get(name, 0.0) for r in said) / samples for name in names}
    return Evaluated(step, means, max(r.seconds for r in said))
