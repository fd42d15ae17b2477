"""Which steps may be leased to whom, and where a view ends. Pure state of one view; the coordinator holds it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import ceil

from shoal.membership.course import Course
from shoal.membership.view import Lease, MemberId, View, lease

LEAST_AHEAD = 2
"""Steps leased beyond the last reported one: one that runs and one that is being loaded."""
MOST_AHEAD = 64
BEAT_S = 0.5
"""Between two words of a member to the coordinator. Short against a human's patience, long against a remote call."""
WORDS_PER_S = 400.0
"""Of all members together: one costs a coordinator about a millisecond (benchmarks/results/control_plane.md)."""
ANSWER_S = 0.25
"""A slow answer of the coordinator."""
SNAPSHOT_SHARE = 0.02
"""Part of the time that snapshots may take if the job does not fix their number."""
MOST_STEPS_APART = 100


class EndKind(str, Enum):
    """Why a view has a boundary."""

    BUDGET = "budget"  # the last step of the run
    STOP = "stop"  # the run was asked to end
    CHANGE = "change"  # the run goes on in another view


@dataclass(frozen=True, slots=True)
class End:
    """The view's last word: do no step beyond `step`, then what the flags say."""

    step: int
    evaluate: bool
    checkpoint: bool
    export: bool
    reason: str
    kind: EndKind = EndKind.BUDGET
    snapshot: bool = False
    """Make a snapshot of the state after `step`, if there is none yet, and return when its keeper has it."""
    keepers: tuple[tuple[MemberId, MemberId], ...] = ()
    """(owner, who keeps the copy of that last snapshot) where that is not the owner's buddy of the view's order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What leasing needs to know of the job."""

    course: Course
    virtual_shards: int
    evaluate_every: int | None
    checkpoint_every: int | None
    export: bool
    can_evaluate: bool
    snapshot: bool = False
    """The engine is sharded: members keep snapshots for each other."""

    def due(self, step: int) -> Due:
        """What the job wants to be done with the state after `step`."""
        if step == self.course.last:
            return Due(self.can_evaluate, True)
        return Due(self.can_evaluate and _due(step, self.evaluate_every), _due(step, self.checkpoint_every))


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done with the state after a step, beside going on."""

    evaluate: bool = False
    checkpoint: bool = False


@dataclass(frozen=True, slots=True)
class LastDue:
    """The last steps, up to some step, after which the state was to be evaluated and saved; None: there was none."""

    evaluate: int | None = None
    checkpoint: int | None = None


def beat_s(members: int) -> float:
    """Seconds between two words of each of so many members. What others wait for is said at once."""
    return max(BEAT_S, members / WORDS_PER_S)


def ahead_s(members: int) -> float:
    """How far steps are leased beyond those at hand: the time between two words, and a slow answer."""
    return beat_s(members) + ANSWER_S


def horizon(reported: int, step_s: float | None, *, ahead_s: float) -> int:
    """Last step that may be leased when `reported` is the most advanced step and one takes `step_s` seconds.

    Far enough that members never wait for the coordinator: the step that runs and the one that is loaded may both be
    done when it hears of them `ahead_s` later. Near enough that a change of the view, whose boundary is the first step
    not yet leased, comes soon.
    """
    ahead = min(MOST_AHEAD, ahead_s / step_s) if step_s else 0
    return reported + min(MOST_AHEAD, LEAST_AHEAD + ceil(ahead))


def steps_apart(cost_s: float, step_s: float) -> int:
    """Steps from one snapshot to the next: as few as cost SNAPSHOT_SHARE of the time if one takes `cost_s` seconds."""
    return max(1, min(MOST_STEPS_APART, ceil(cost_s / (SNAPSHOT_SHARE * step_s))))


class Leasing:
    """Leases of one view. A step leased to one member is leased to all, so that nobody waits in a collective alone.

    `owes`: what is still due for the state with which the view begins, after step `first_step - 1`, and is said by the
    order of the view. None: nothing, or, if the budget is used up already, all that is due after its last step.
    """

    def __init__(self, view: View, plan: Plan, first_step: int, *, owes: Due | None = None) -> None:
        self.view = view
        self.plan = plan
        self.first_step = first_step
        self.leased_until = first_step - 1
        self.end: End | None = None
        self._told = False
        self._given = dict.fromkeys(view.members, first_step - 1)
        self._shards = view.divided(plan.virtual_shards)
        self._snapshots: set[int] = set()
        self._last_snapshot = first_step - 1
        last = plan.course.last
        used_up = last is not None and first_step > last
        self.owes = owes or (plan.due(first_step - 1) if used_up else Due())
        if used_up:
            self._finish("the budget was used up already", Due())

    def extend(self, until: int, snapshot_every: int = 1) -> None:
        """Allow leases up to step `until` (or the view's end); of the new ones each `snapshot_every`-th is a snapshot.

        The flags of a step are decided here, once. The first step of a view is always a snapshot, and so is a step
        with a checkpoint, which needs the same copy.
        """
        until = min(until, self.end.step) if self.end else self.plan.course.decide(until)
        for step in range(self.leased_until + 1, until + 1):
            self.leased_until = step
            counted = step == self.first_step or step - self._last_snapshot >= max(1, snapshot_every)
            # With sharded engines only a snapshot makes steps final, and somebody may wait for that.
            counted = counted or self.plan.course.awaits(step)
            if self.plan.snapshot and (counted or self.plan.due(step).checkpoint):
                self._snapshots.add(step)
                self._last_snapshot = step
        if self.end is None and self.leased_until == self.plan.course.last:
            self._finish("the budget is used up", self.plan.due(self.leased_until))

    def stop(self, reason: str, *, checkpoint: bool = True) -> None:
        """End the run's work at the boundary: the first step that is not leased to anybody yet; with its `checkpoint`.

        Wins over a change that no member has been told of. A change that somebody was told of stays, so that all
        members do the same; the next view then ends at once. The end of the budget stays.
        """
        if self.end is None or (self.end.kind is EndKind.CHANGE and not self._told):
            self.end = self._at_boundary(EndKind.STOP, reason, checkpoint=checkpoint)

    def change(
        self, reason: str, *, keepers: Mapping[MemberId, MemberId] | None = None, checkpoint: bool = False
    ) -> None:
        """End the view, not the run, at its boundary. Changes nothing if the view has an end already.

        `keepers`: who keeps the copies of the last snapshot, so that nobody's lies with one who leaves.
        `checkpoint`: nobody who holds the state will stay, so it must become durable.
        """
        if self.end is None:
            self.end = self._at_boundary(EndKind.CHANGE, reason, checkpoint=checkpoint, keepers=keepers or {})

    def resume_at(
        self, given: Mapping[MemberId, int], *, snapshots: Collection[int] = (), ends: Iterable[End] = ()
    ) -> None:
        """Take over a view from a coordinator that was lost in the middle of it, before anything else is called.

        `given`: the last step leased to each member; `snapshots`: those of the leases given out that say so;
        `ends`: every end that a member was told. All three are what members say.
        """
        assert self.leased_until == self.first_step - 1, "a view is taken over before anything is leased"
        self._given.update({m: s for m, s in given.items() if m in self._given})
        self.leased_until = self.plan.course.decide(max(self._given.values()))
        self._snapshots.update(snapshots)
        self._last_snapshot = max([self._last_snapshot, *snapshots])
        for end in ends:
            assert self.end in (None, end) or not self._told, f"members were told two ends: {self.end} and {end}"
            self.end, self._told = end, True
        self.extend(self.leased_until)

    def take(self, member: MemberId) -> tuple[Lease, ...]:
        """The leases that `member` has not been given yet; `end` counts as told to it."""
        self._told = self._told or self.end is not None
        first, self._given[member] = self._given[member] + 1, self.leased_until
        taken = tuple(self._flagged(self._lease(member, s)) for s in range(first, self.leased_until + 1))
        if len(self._snapshots) > 2 * MOST_AHEAD:  # seldom: it looks at all members
            told = min(self._given.values())
            self._snapshots = {s for s in self._snapshots if s > told}
        return taken

    def last_due(self, step: int) -> LastDue:
        """What was last due in this view up to `step`, what it owed to begin with included."""
        plan, owed, last = self.plan, self.owes, self.plan.course.last
        evaluate = _last_due(step, plan.evaluate_every, last) if plan.can_evaluate else 0
        checkpoint = _last_due(step, plan.checkpoint_every, last)
        before = self.first_step - 1
        return LastDue(
            evaluate if evaluate >= self.first_step else before if owed.evaluate else None,
            checkpoint if checkpoint >= self.first_step else before if owed.checkpoint else None,
        )

    def _lease(self, member: MemberId, step: int) -> Lease:
        mine, plan = self._shards[member], self.plan
        return lease(self.view.number, mine, step, course=plan.course, virtual_shards=plan.virtual_shards)

    def _flagged(self, given: Lease) -> Lease:
        # What follows the very last step is said by `End`, once, so that the two can never disagree.
        flags = Due() if given.step == self.plan.course.last else self.plan.due(given.step)
        return replace(
            given,
            evaluate=flags.evaluate,
            checkpoint=flags.checkpoint,
            snapshot=given.step in self._snapshots,
        )

    def _at_boundary(
        self, kind: EndKind, reason: str, *, checkpoint: bool, keepers: Mapping[MemberId, MemberId] | None = None
    ) -> End:
        return End(
            self.leased_until,
            evaluate=False,
            checkpoint=checkpoint,
            export=False,
            reason=reason,
            kind=kind,
            snapshot=self.plan.snapshot,
            keepers=tuple(sorted((keepers or {}).items())),
        )

    def _finish(self, reason: str, due: Due) -> None:
        last = self.plan.course.last
        assert last is not None, "the budget ends with a step that was decided"
        self.end = End(
            max(last, self.first_step - 1),
            evaluate=due.evaluate,
            checkpoint=due.checkpoint,
            export=self.plan.export,
            reason=reason,
            snapshot=self.plan.snapshot,
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _last_due(step: int, every: int | None, last: int | None) -> int:
    if last is not None and step >= last:
        return last
    return step - step % every if every else 0
