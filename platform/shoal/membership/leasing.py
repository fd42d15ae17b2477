"""Which steps may be leased to whom, and where a view ends. Pure state of one view; the coordinator holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shoal.membership.view import Lease, MemberId, View, lease

LEAST_AHEAD = 2
"""Steps leased beyond the last reported one: one that runs and one that is being loaded."""
MOST_AHEAD = 64


@dataclass(frozen=True, slots=True)
class End:
    """The view's last word: do no step beyond `step`, then what the flags say."""

    step: int
    evaluate: bool
    checkpoint: bool
    export: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What leasing needs to know of the job."""

    batch_size: int
    virtual_shards: int
    total_steps: int
    evaluate_every: int | None
    checkpoint_every: int | None
    export: bool
    can_evaluate: bool


def horizon(reported: int, step_s: float | None, *, ahead_s: float) -> int:
    """Last step that may be leased when `reported` is the most advanced step and one takes `step_s` seconds.

    Far enough that members never wait for the coordinator, near enough that a change of the view, whose boundary is the
    first step not yet leased, comes within about `ahead_s`.
    """
    ahead = LEAST_AHEAD if not step_s else int(ahead_s / step_s)
    return reported + max(LEAST_AHEAD, min(MOST_AHEAD, ahead))


class Leasing:
    """Leases of one view. A step leased to one member is leased to all, so that nobody waits in a collective alone."""

    def __init__(self, view: View, plan: Plan, first_step: int) -> None:
        self.view = view
        self.plan = plan
        self.leased_until = first_step - 1
        self.end: End | None = None
        self._given = dict.fromkeys(view.members, first_step - 1)
        if first_step > plan.total_steps:
            self._finish("the budget was used up already")

    def extend(self, until: int) -> None:
        """Allow leases up to step `until` (or the view's end)."""
        last = self.end.step if self.end else self.plan.total_steps
        self.leased_until = max(self.leased_until, min(until, last))
        if self.end is None and self.leased_until == self.plan.total_steps:
            self._finish("the budget is used up")

    def stop(self, reason: str) -> None:
        """End the view at its boundary: the first step that is not leased to anybody yet."""
        if self.end is None:
            self.end = End(self.leased_until, evaluate=False, checkpoint=True, export=False, reason=reason)

    def take(self, member: MemberId) -> tuple[Lease, ...]:
        """The leases that `member` has not been given yet."""
        first, self._given[member] = self._given[member] + 1, self.leased_until
        return tuple(self._flagged(self._lease(member, s)) for s in range(first, self.leased_until + 1))

    def _lease(self, member: MemberId, step: int) -> Lease:
        return lease(self.view, member, step, batch_size=self.plan.batch_size, virtual_shards=self.plan.virtual_shards)

    def _flagged(self, given: Lease) -> Lease:
        # What follows the very last step is said by `End`, once, so that the two can never disagree.
        if given.step == self.plan.total_steps:
            return given
        return replace(
            given,
            evaluate=self.plan.can_evaluate and _due(given.step, self.plan.evaluate_every),
            checkpoint=_due(given.step, self.plan.checkpoint_every),
        )

    def _finish(self, reason: str) -> None:
        self.end = End(
            self.plan.total_steps,
            evaluate=self.plan.can_evaluate,
            checkpoint=True,
            export=self.plan.export,
            reason=reason,
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
