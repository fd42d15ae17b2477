"""Where the state of the next view comes from. Pure.

The rules, each of which the simulation tries to break:

* Parts of a state are put together only if they are of the same step *and* of the same view: a step that was rolled
  back is done again in another division, and its parts would fit each other by name only.
* A view that went on from step S made void what earlier views did beyond S: that branch of the run does not exist.
* No state in memory is used that lies behind a committed step. If memory holds none that is new enough, the durable
  checkpoint is used, and the steps since are run again; the choice says which.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from shoal.membership.messages import Fresh, InMemory, Source, Stored, ViewEnd
from shoal.membership.view import MemberId, View


@dataclass(frozen=True, slots=True)
class Formed:
    """A view that was formed, and the step after which its members went on."""

    view: View
    source_step: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """A state that lies whole in the memory of workers: `holders` says for each owner who holds its part.

    Sharded: every owner of view `view`, in rank order, the owner itself first if it lives. Replicated: every worker
    that has the state is its own owner, and any one of them is enough.
    """

    step: int
    view: int
    sharded: bool
    holders: tuple[tuple[MemberId, tuple[MemberId, ...]], ...]

    def among(self, members: Collection[MemberId]) -> InMemory | None:
        """The source for a view of `members`; None if they do not hold the whole state."""
        there = set(members)
        gives: dict[MemberId, list[MemberId]] = {}
        for owner, holders in self.holders:
            able = [h for h in holders if h in there]
            if able:
                # The owner itself, else who has the least to give so far.
                giver = owner if owner in able else min(able, key=lambda h: len(gives.get(h, ())))
                gives.setdefault(giver, []).append(owner)
            elif self.sharded:
                return None
        if not gives:
            return None
        return InMemory(self.step, tuple((m, tuple(owners)) for m, owners in gives.items()), self.view)

    def lacking(self, members: Collection[MemberId]) -> tuple[tuple[MemberId, ...], ...]:
        """For each part that `members` lack, who else holds it."""
        there = set(members)
        if self.sharded:
            return tuple(holders for _, holders in self.holders if there.isdisjoint(holders))
        everyone = tuple(h for _, holders in self.holders for h in holders)
        return (everyone,) if there.isdisjoint(everyone) else ()


@dataclass(frozen=True, slots=True)
class Choice:
    """The state that the next view begins with, and why."""

    state: Fresh | Stored | Remembered
    reason: str
    again: tuple[int, int] | None = None
    """First and last step that are committed and will be run again; None: nothing committed is lost."""

    @property
    def step(self) -> int:
        return self.state.step

    def source(self, members: Collection[MemberId]) -> Source | None:
        """As an order's source; None if `members` do not hold all of it."""
        return self.state.among(members) if isinstance(self.state, Remembered) else self.state


def sources(
    formed: Sequence[Formed],
    ends: Iterable[ViewEnd],
    *,
    sharded: bool,
    committed: int,
    checkpoint: Stored | None,
    fresh_allowed: bool = True,
) -> Choice | None:
    """The most advanced state that can be had, or None if there is none at all.

    `formed`: the run's views in order, as far back as `ends` speak of them. `ends`: the last word of every worker that
    is alive and was in a view, wherever it is now (a member, one set aside, one about to leave); newcomers have none.
    Their `held` is asked for again when all are out: a copy may reach a buddy after the buddy's own end.
    `committed`: the last step in the ledger, 0 if there is none. `fresh_allowed`: the initial weights are a state of
    this run.
    """
    words = tuple(ends)
    best = _best_shards(formed, words) if sharded else _best_replica(formed, words)
    behind = ""
    if best is not None and best.step >= max(committed, checkpoint.step if checkpoint else 0):
        return Choice(best, f"step {best.step} is in memory")
    if best is not None:
        behind = f": the latest whole state in memory is that of step {best.step}"
    elif words:
        behind = ": nobody holds a whole state in memory"
    if checkpoint is not None:
        return Choice(
            checkpoint, f"from the checkpoint of step {checkpoint.step}{behind}", _again(checkpoint, committed)
        )
    if fresh_allowed:
        return Choice(Fresh(), f"from the initial weights{behind}", _again(Fresh(), committed))
    return None


def _best_shards(formed: Sequence[Formed], ends: Sequence[ViewEnd]) -> Remembered | None:
    views = {f.view.number: f.view for f in formed}
    limits = _limits(formed)
    holders: dict[tuple[int, int], dict[MemberId, list[MemberId]]] = {}
    for end in ends:
        for held in end.held:
            if held.view in views and held.step <= limits[held.view]:
                holders.setdefault((held.step, held.view), {}).setdefault(held.owner, []).append(end.member)
    for step, number in sorted(holders, reverse=True):
        parts, owners = holders[step, number], views[number].members
        if all(owner in parts for owner in owners):
            # False sorts first: the owner itself, then the others in the order of `ends`.
            whole = tuple((o, tuple(sorted(dict.fromkeys(parts[o]), key=lambda m, o=o: m != o))) for o in owners)  # type: ignore[misc]
            return Remembered(step, number, True, whole)
    return None


def _best_replica(formed: Sequence[Formed], ends: Sequence[ViewEnd]) -> Remembered | None:
    limits = _limits(formed)
    able = [(e.step, e.made_in or e.view, e.member) for e in ends if not e.stale]
    able = [(step, view, member) for step, view, member in able if view in limits and step <= limits[view]]
    if not able:
        return None
    best = max(step for step, _, _ in able)
    view = max(view for step, view, _ in able if step == best)
    return Remembered(best, view, False, tuple((m, (m,)) for step, _, m in able if step == best))


def _limits(formed: Sequence[Formed]) -> dict[int, float]:
    """Up to which step what each view did is part of the run."""
    limits: dict[int, float] = {}
    limit = float("inf")
    for f in reversed(formed):
        limits[f.view.number] = limit
        limit = min(limit, f.source_step)
    return limits


def _again(state: Fresh | Stored, committed: int) -> tuple[int, int] | None:
    return (state.step + 1, committed) if state.step < committed else None
