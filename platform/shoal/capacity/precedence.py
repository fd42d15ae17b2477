"""Who gives way to whom: several runs on one cluster, of which some find no place for their workers. Pure.

The rules, in this order:

1. Room that is free goes to the run of the highest priority that lacks some, then to who came first.
2. Where there is none, workers of runs of a lower priority leave: as few as possible, of the lowest priority first, and
   of one run the newest first.
3. No run is brought below the fewest workers that it can run with, unless the one that lacks places cannot run
   without them either. That one gets all that it needs to run, or nothing.
4. Among runs of the same priority nobody gives way, but for one case: runs that all have a part of what they need to
   begin would wait for each other for ever. There, who came later and has not begun gives way.

Whoever lacks a place looks at the whole picture and asks those that this function names; the picture is the same for
all, so two that ask at the same time ask for the same. What is asked is named worker by worker: to hear it twice
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from shoal.capacity.fits import Need, Node, held, suits


@dataclass(frozen=True, slots=True)
class Holding:
    """A worker that has a place."""

    worker: str
    node: str
    leaving: bool = False
    """It gives its place back already."""


@dataclass(frozen=True, slots=True)
class Lack:
    """Places that a run asked for and does not get."""

    need: Need
    count: int
    vital: bool
    """Without them the run cannot go on, or begin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What one run says of itself."""

    run: str
    priority: int
    since: float
    """Unix seconds at which it was launched; clocks that disagree decide no more than who came first."""
    begun: bool
    """It has had a view: its workers may hold all that it has learned."""
    least: int
    """The fewest workers that it can run with."""
    need: Need
    """What each of its workers takes."""
    holds: tuple[Holding, ...] = ()
    """Its workers, the oldest first."""
    lacks: tuple[Lack, ...] = ()

    @property
    def staying(self) -> int:
        """Workers that it has and is not losing."""
        return sum(not h.leaving for h in self.holds)


@dataclass(frozen=True, slots=True)
class Way:
    """How one run gives way to another: it asks the cluster for no more workers, and these of its own leave."""

    workers: tuple[str, ...]
    run: str
    """The one that needs the places most."""


def precedence(nodes: Sequence[Node], claims: Iterable[Claim]) -> dict[str, Way]:
    """How runs give way; those that need not are left out.

    All that a run outranks ask for nothing while it gets what it lacks: what becomes free is meant for it.
    """
    queue = sorted(claims, key=lambda c: (-c.priority, c.since, c.run))
    table = _Table(nodes, queue)
    served: dict[str, int] = {}
    for claim in queue:
        vital = [lack for lack in claim.lacks if lack.vital for _ in range(lack.count)]
        more = [lack for lack in claim.lacks if not lack.vital for _ in range(lack.count)]
        before = table.copy()
        if not all(table.serve(claim, lack) for lack in vital):
            table = before
        elif vital or more:
            found_more = [table.serve(claim, lack) for lack in more]
            if vital or any(found_more):
                served[claim.run] = claim.priority
    first = next(iter(served), "")
    found: dict[str, Way] = {}
    for claim in queue:
        taken = table.taken.get(claim.run, {})
        outranked = any(priority > claim.priority for priority in served.values())
        if taken or outranked:
            found[claim.run] = Way(tuple(taken), next(iter(taken.values()), first))
    return found


def heed(own: Claim, asker: Claim, workers: Iterable[str]) -> tuple[str, ...]:
    """Which of `workers` the run `own` gives up when `asker` wants them: it may know better by now than the picture
    that the asker has."""
    vital = any(lack.vital for lack in asker.lacks)
    if not _gives_way(own, asker, vital=vital):
        return ()
    mine = [h for h in own.holds if h.worker in set(workers)]
    kept = sum(not h.leaving and h not in mine for h in own.holds)
    return () if kept < own.least and not vital else tuple(h.worker for h in mine)


class _Table:
    """Room on the nodes while the claims are served one after another."""

    def __init__(self, nodes: Sequence[Node], claims: Sequence[Claim]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._free = {node.id: dict(node.free) for node in nodes}
        self._claims = claims
        self._staying = {c.run: c.staying for c in claims}
        self.taken: dict[str, dict[str, str]] = {}
        """run -> worker that is to leave -> for whom."""
        for claim in claims:
            for holding in claim.holds:
                if holding.leaving and holding.node in self._free:
                    self._add(holding.node, claim.need, 1)  # it will be free in a moment

    def copy(self) -> _Table:
        """The same, to go on from if what is tried on this one fails."""
        other = copy(self)
        other._free = {node: dict(amounts) for node, amounts in self._free.items()}
        other._staying = dict(self._staying)
        other.taken = {run: dict(workers) for run, workers in self.taken.items()}
        return other

    def serve(self, claim: Claim, lack: Lack) -> bool:
        """Find a place for one of `lack`: a free one, else one that others leave."""
        able = [n for n in self._nodes.values() if suits(n, lack.need) and held(n.has, lack.need)]
        for node in able:
            if held(self._free[node.id], lack.need):
                self._add(node.id, lack.need, -1)
                return True
        options = [found for node in able if (found := self._leavers(node, claim, lack)) is not None]
        if not options:
            return False
        _, node, leavers = min(options, key=lambda option: option[0])
        for run, worker in leavers:
            owner = next(c for c in self._claims if c.run == run)
            self._add(node.id, owner.need, 1)
            self._staying[run] -= 1
            self.taken.setdefault(run, {})[worker] = claim.run
        self._add(node.id, lack.need, -1)
        return True

    def _leavers(
        self, node: Node, claim: Claim, lack: Lack
    ) -> tuple[tuple[int, int, int], Node, list[tuple[str, str]]] | None:
        """Whose leaving would make room on `node`, with what it costs; None: nobody's that may be asked."""
        free, found = dict(self._free[node.id]), list[tuple[str, str]]()
        staying, below, highest = dict(self._staying), 0, -(1 << 62)
        for owner, worker in self._candidates(node, claim, lack):
            if held(free, lack.need):
                break
            if staying[owner.run] <= owner.least:
                if not lack.vital:
                    continue
                below += 1
            staying[owner.run] -= 1
            found.append((owner.run, worker))
            highest = max(highest, owner.priority)
            _plus(free, owner.need, 1)
        if not held(free, lack.need):
            return None
        needed = _fewest(self._free[node.id], found, {c.run: c.need for c in self._claims}, lack.need)
        return (below, highest, len(needed)), node, needed

    def _candidates(self, node: Node, claim: Claim, lack: Lack) -> list[tuple[Claim, str]]:
        """Workers on `node` that may be asked to leave: of the lowest priority first, of one run the newest first;
        those that are beyond what their runs need before all others."""
        found: list[tuple[bool, Claim, int, str]] = []
        for owner in self._claims:
            if not _gives_way(owner, claim, vital=lack.vital):
                continue
            spare = self._staying[owner.run] - owner.least
            taken = self.taken.get(owner.run, {})
            mine = [h for h in reversed(owner.holds) if not h.leaving and h.worker not in taken]
            here = [h for h in mine if h.node == node.id]
            found += [(i >= spare, owner, i, h.worker) for i, h in enumerate(here)]
        found.sort(key=lambda f: (f[0], f[1].priority, -f[1].since, f[2]))
        return [(owner, worker) for _, owner, _, worker in found]

    def _add(self, node: str, need: Need, count: int) -> None:
        _plus(self._free[node], need, count)


def _gives_way(owner: Claim, claim: Claim, *, vital: bool) -> bool:
    if owner.run == claim.run:
        return False
    later = (owner.since, owner.run) > (claim.since, claim.run)
    deadlock = owner.priority == claim.priority and later and not owner.begun and not claim.begun and vital
    return owner.priority < claim.priority or deadlock


def _fewest(
    free: Mapping[str, float], leavers: list[tuple[str, str]], needs: Mapping[str, Need], need: Need
) -> list[tuple[str, str]]:
    """`leavers` without those whose leaving is not needed after all, the most valuable spared first."""
    kept = list(leavers)
    for one in reversed(leavers):
        rest = [other for other in kept if other != one]
        amounts = dict(free)
        for run, _ in rest:
            _plus(amounts, needs[run], 1)
        if held(amounts, need):
            kept = rest
    return kept


def _plus(amounts: dict[str, float], need: Need, count: int) -> None:
    for name, amount in need.amounts:
        amounts[name] = amounts.get(name, 0.0) + count * amount
