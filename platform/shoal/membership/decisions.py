"""What comes next: form a view, wait, or conclude; and whether a running view is worth changing. Pure.

The coordinator fills in a `Situation` and carries out what comes back; each decision says its reason.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from shoal.membership.leasing import LEAST_AHEAD
from shoal.membership.losses import Fail, Recover
from shoal.membership.messages import Source
from shoal.membership.recovery import Choice, Remembered
from shoal.membership.stragglers import cuts_for, pace, relative
from shoal.membership.view import MemberId, View

HASTE_S = 12.0
"""Beside what a leave is known to take: a host that is about to go may be slow, a clock wrong, and if nobody stays, a
checkpoint is written."""
TO_BOUNDARY = 1 + LEAST_AHEAD
"""Steps until a view ends: the one being computed, and those that are leased ahead."""
WORTH = 2.0
"""A change that nobody is forced to must save this many times what changes have cost so far: what is left of the run is
an estimate, and one change is often followed by the next."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A worker that is ready: its process is up and warm, in the view or beside it."""

    member: MemberId
    node: str = ""
    leaving: str | None = None
    """Why it is about to leave; it trains until the boundary and takes part in no later view."""
    stays_s: float = 0.0
    """Seconds for which one that leaves could still stay; 0: it is wanted away."""
    speed: float | None = None
    """Virtual shards per second (`Paces.speeds`); None: not known, or the job wants an even division. Between views it
    is the one that was measured last: a division that depends on it would otherwise come and go with every view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """All that a decision depends on."""

    ready: tuple[Standing, ...]
    """In the order in which they became ready."""
    starting: int
    """Workers that have a place and are being started."""
    min: int
    max: int
    last: View | None
    """The view that runs (`change_wanted`), or the one before (`next_view`); None before the first."""
    choice: Choice | None
    """Where the next view's state comes from (`recovery.sources`); not looked at while a view runs."""
    step: int
    """Last step done by the view that runs; between views it does not count."""
    total_steps: int
    virtual_shards: int
    step_s: float | None = None
    """Seconds per step in the view that runs; None: not measured yet."""
    resize_cost_s: float = 1.0
    """Seconds without a commit that a change costs: the mean of those so far."""
    stop: str | None = None
    """Why the run was asked to end."""
    finished: bool = False
    """The budget is used up, and its evaluation, checkpoint and export are there."""
    saved: bool = False
    """There is a durable checkpoint of the state of `choice`."""
    verdict: Recover | Fail | None = None
    """What was decided about the loss that broke the last view; None: it ended at its boundary."""
    settled: bool = True
    """False: the run begins, and those who have a place may still be waited for."""


@dataclass(frozen=True, slots=True)
class Form:
    """Form a view of `members`, in rank order."""

    members: tuple[MemberId, ...]
    cuts: tuple[int, ...] | None
    source: Source
    reason: str
    spares: tuple[MemberId, ...] = ()
    """Ready, but more than what helps or is wanted: they wait beside the view and step in at the next loss."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing until another worker is ready; the state stays where it is."""

    reason: str


@dataclass(frozen=True, slots=True)
class Conclude:
    """The run is over."""

    status: Literal["finished", "failed", "stopped"]
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """End the running view at its boundary, so that these can join and those can leave."""

    reason: str
    joins: tuple[MemberId, ...] = ()
    leaves: tuple[MemberId, ...] = ()
    checkpoint: bool = False
    """Nobody who holds the state stays: it must become durable before they go."""


def next_view(s: Situation) -> Form | Wait | Conclude:
    """What to do when no view runs."""
    if isinstance(s.verdict, Fail):
        return Conclude("failed", s.verdict.reason)
    if s.finished:
        return Conclude("finished", "the budget is used up")
    if s.choice is None:
        return Conclude("failed", "there is no state to go on from: no checkpoint, and no initial weights of this run")
    if s.stop is not None:
        return _closing_view(s, s.choice, s.stop)
    staying = _staying(s)
    if not s.settled and s.starting and len(staying) < min(s.max, s.virtual_shards):
        return Wait(f"{len(staying)} of up to {s.max} workers are ready, {s.starting} are starting")
    if len(staying) >= s.min:
        return _form(s, s.choice, _crew(s, staying))
    if not s.saved and isinstance(s.choice.state, Remembered) and s.choice.state.lacking(staying):
        return _form(s, s.choice, tuple(staying))  # the leavers would take the state with them
    return Wait(_too_few(s, len(staying)))


def change_wanted(s: Situation) -> Change | None:
    """Whether the running view `s.last` should end at its boundary for another one; asked as often as one likes.

    Leaves are always honoured, in good time: who may still stay trains on until others can take its place. So is a
    newcomer while the view is smaller than `min`. Anything else must save more time over the rest of the run than
    changes cost.
    """
    assert s.last is not None, "there is no view that could be changed"
    staying = _staying(s)
    crew = _crew(s, staying)
    chosen, old = set(crew), set(s.last.members)
    leaves = tuple(m for m in s.last.members if m not in chosen)
    joins = tuple(m for m in crew if m not in old)
    replaced = len(crew) >= min(s.last.size, s.max)
    if leaves and (replaced or not _can_wait(s, leaves)):
        why = {r.member: r.leaving or f"more than workers.max={s.max}" for r in s.ready}
        said = ", ".join(f"{m} ({why.get(m, 'gone')})" for m in leaves)
        return Change(
            f"leave: {said}" + _also(joins), joins, leaves, checkpoint=not chosen & old and len(staying) < s.min
        )
    if leaves:
        return None
    if joins and s.last.size < s.min:
        return Change(f"join: {', '.join(joins)}; {s.last.size} workers are fewer than workers.min={s.min}", joins)
    share, remaining = _saved_share(s, crew), (s.total_steps - s.step) * (s.step_s or 0.0)
    if share * remaining <= s.resize_cost_s * WORTH:
        return None
    gain = f"saves about {share * remaining:.3g}s of the {remaining:.3g}s that are left, for {s.resize_cost_s:.2g}s"
    if joins:
        return Change(f"join: {', '.join(joins)}; {gain}", joins)
    return Change(f"another division of the virtual shards; {gain}")


# Who takes part ------------------------------------------------------------------------------------------------------


def _staying(s: Situation) -> list[MemberId]:
    """Those who could be members: the last view's in their rank order, then newcomers as they became ready."""
    able = dict.fromkeys(r.member for r in s.ready if r.leaving is None)
    old = dict.fromkeys(m for m in s.last.members if m in able) if s.last else {}
    return [*old, *(m for m in able if m not in old)]


def _can_wait(s: Situation, leaves: Collection[MemberId]) -> bool:
    time = {r.member: r.stays_s for r in s.ready if r.leaving is not None}
    return all(time.get(m, 0.0) > leaves_before_s(s) for m in leaves)


def leaves_before_s(s: Situation) -> float:
    """Who must go leaves so many seconds before it must, whether others can take its place or not."""
    return HASTE_S + s.resize_cost_s + TO_BOUNDARY * (s.step_s or 0.0)


def left_s(deadline: float, *clocks: float) -> float:
    """Seconds until `deadline` by that of these clocks which is furthest ahead (all in Unix seconds).

    Clocks of nodes need not agree, and whoever set the deadline may have read any of them. To leave too soon costs a
    change, to leave too late the state.
    """
    return max(0.0, deadline - max(clocks))


def _crew(s: Situation, staying: Sequence[MemberId]) -> tuple[MemberId, ...]:
    """At most `max` and one per virtual shard, the newest left out first, and no newcomer who does not help.

    The slowest member decides about a step, and it has ceil(V/n) virtual shards: the smallest n with the same ceil is
    as fast. Members of the last view stay even if a smaller one were as fast: their parts need not move then.
    """
    most = min(len(staying), s.max, s.virtual_shards)
    if not most:
        return ()
    rounds = -(-s.virtual_shards // most)
    enough = -(-s.virtual_shards // rounds)
    old = len(set(s.last.members).intersection(staying)) if s.last else 0
    return tuple(staying[: min(most, max(enough, s.min, old))])


def _form(s: Situation, choice: Choice, crew: tuple[MemberId, ...]) -> Form:
    members = _with_holders(s, choice, crew)
    source = choice.source(members)
    assert source is not None, "everyone who holds a part of the state is ready"
    taken = set(members)
    spares = tuple(r.member for r in s.ready if r.member not in taken and r.leaving is None)
    reason = _reason(s, choice, members, crew)
    if spares:
        why = f"workers.max={s.max}" if len(members) >= s.max else "more would not be faster"
        reason += f"; spare: {', '.join(spares)} ({why})"
    return Form(members, _cuts(s, members), source, reason, spares)


def _with_holders(s: Situation, choice: Choice, crew: tuple[MemberId, ...]) -> tuple[MemberId, ...]:
    """`crew`, and whoever alone holds a part of the state, for one view more, in the place of newcomers if need be."""
    if not isinstance(choice.state, Remembered):
        return crew
    leaving = {r.member for r in s.ready if r.leaving is not None}
    chosen = set(crew)
    while lacking := choice.state.lacking(chosen):
        chosen.add(min(lacking[0], key=lambda m: m in leaving))
    for member in reversed(crew):
        if len(chosen) <= max(min(s.max, s.virtual_shards), len(crew)):
            break
        if choice.state.among(chosen - {member}) is not None:
            chosen.discard(member)
    old = s.last.members if s.last else ()
    new = chosen.difference(old)
    return (*(m for m in old if m in chosen), *(r.member for r in s.ready if r.member in new))


def _closing_view(s: Situation, choice: Choice, stop: str) -> Form | Conclude:
    """A last view, of whoever is there, that only makes the state durable, if that is not done and can be done."""
    if s.saved or choice.step == 0 or not isinstance(choice.state, Remembered):
        return Conclude("stopped", stop)
    crew = tuple(_staying(s)[: min(s.max, s.virtual_shards)])
    return _form(s, choice, crew)


# Speed ---------------------------------------------------------------------------------------------------------------


def _speeds(s: Situation, members: Sequence[MemberId]) -> list[float]:
    return relative({r.member: r.speed for r in s.ready if r.speed is not None}, members)


def _cuts(s: Situation, members: Sequence[MemberId]) -> tuple[int, ...] | None:
    return cuts_for(_speeds(s, members), s.virtual_shards)


def _saved_share(s: Situation, crew: Sequence[MemberId]) -> float:
    """Part of the step time that a view of `crew` would save."""
    assert s.last is not None
    known = {r.member for r in s.ready if r.speed is not None}
    even, evenly = (View(0, tuple(members)).bounds(s.virtual_shards) for members in (s.last.members, crew))
    if not known.issuperset(s.last.members):
        # Whoever is not measured yet may be as fast as all others, or the reason for the division that there is.
        return 1.0 - pace(evenly, [1.0] * len(crew)) / pace(even, [1.0] * s.last.size)
    now = pace(s.last.bounds(s.virtual_shards), _speeds(s, s.last.members))
    return 1.0 - pace(_cuts(s, crew) or evenly, _speeds(s, crew)) / now


# Words ---------------------------------------------------------------------------------------------------------------


def _too_few(s: Situation, ready: int) -> str:
    return (
        f"{ready} of at least workers.min={s.min} workers are ready, {s.starting} are starting; the run goes on by "
        f"itself when there are enough"
    )


def _reason(s: Situation, choice: Choice, members: Sequence[MemberId], crew: Collection[MemberId]) -> str:
    old = dict.fromkeys(s.last.members) if s.last else {}
    now, crew = set(members), set(crew)
    parts = [s.verdict.reason] if isinstance(s.verdict, Recover) else []
    gone = [m for m in old if m not in now]
    if gone and s.verdict is None:
        parts.append(f"without {', '.join(gone)}")
    joined = [m for m in members if m not in old]
    if old and joined:
        parts.append(f"with {', '.join(joined)}")
    kept = [m for m in members if m not in crew]
    if kept:
        parts.append(f"{', '.join(kept)} stays for one view more, to hand over the state")
    parts.append(choice.reason)
    if choice.again is not None:
        first, last = choice.again
        parts.append(f"steps {first} to {last} are run again")
    return "; ".join(parts)


def _also(joins: Sequence[MemberId]) -> str:
    return f"; join: {', '.join(joins)}" if joins else ""
