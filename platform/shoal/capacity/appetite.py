"""How many workers to ask a cluster for, and which of those that are there to give back. Pure: time is passed in.

Nodes cost money while they idle, and a node that is fetched and given back again and again costs more: so a worker that
makes no step shorter is given back after a while, and what was given back is not asked for again until something has
changed, or a long time has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

AGAIN_S = (300.0, 3600.0)
"""After idle workers were given back, until as many as they are asked for once more; doubling, up to the second."""
WORTH = 2.0
"""A newcomer must be of use for this many times what its joining costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """All that the decision depends on."""

    low: int
    high: int
    sizes: Sequence[int]
    """The numbers of workers in [low, high] that make a step shorter than the next smaller one, ascending."""
    have: int
    """Workers that have a place and are not leaving."""
    idle: int
    """Of these, how many are ready and in no view, although one runs and none is about to change."""
    now: float
    left_s: float | None = None
    """Seconds that the run will still take; None: nobody knows yet."""
    coming_s: float = 0.0
    """Seconds from asking for a worker to its first step, as they were so far."""
    resize_cost_s: float = 1.0
    """Seconds without a commit that a change of the view costs."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to do now."""

    want: int
    """Have so many workers: ask for what is missing, take back requests for what is more."""
    give_back: int = 0
    """So many idle ones go."""
    reason: str = ""
    """Why less than `high` is wanted; empty: it is not."""


class Appetite:
    """Remembers what was of no use."""

    def __init__(self, idle_s: float) -> None:
        """`idle_s`: for how long a worker may idle as a spare, ready to step in at a loss."""
        self._idle_s = idle_s
        self._idle_since: float | None = None
        self._limit: int | None = None
        self._again_at, self._pause_s = 0.0, AGAIN_S[0]
        self._asked = (0, 0)

    def decide(self, t: Table) -> Order:
        """What to do; asked a few times a second."""
        if self._asked != (t.low, t.high):  # somebody wants another size: what was learned is about the old one
            self._asked, self._limit, self._pause_s, self._idle_since = (t.low, t.high), None, AGAIN_S[0], None
        surplus = max(0, t.have - t.high)
        if surplus and t.idle:
            return Order(t.high, min(surplus, t.idle), f"workers.max={t.high}")
        if t.idle == 0:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = t.now
        elif t.now - self._idle_since >= self._idle_s:
            return self._sated(t)
        if self._limit is not None and t.now >= self._again_at:
            self._limit = None
        if t.have >= t.low and t.left_s is not None and t.left_s <= t.coming_s + WORTH * t.resize_cost_s:
            return Order(t.have, 0, f"the run ends in {t.left_s:.0f}s, and a newcomer takes {t.coming_s:.0f}s")
        if self._limit is not None:
            return Order(max(t.low, self._limit), 0, f"more than {self._limit} were of no use")
        return Order(t.high)

    def _sated(self, t: Table) -> Order:
        """Some have idled for too long: as many stay as are of use."""
        self._idle_since = t.now
        of_use = max(t.low, t.have - t.idle, *(size for size in t.sizes if size <= t.have))
        if of_use < t.have:
            self._limit = of_use
            further = any(size > t.have for size in t.sizes)  # with more of them these would be of use, too
            self._again_at, self._pause_s = (
                (t.now + self._pause_s if further else inf),
                min(2 * self._pause_s, AGAIN_S[1]),
            )
        limit = self._limit if self._limit is not None else t.high
        return Order(min(limit, t.high), max(0, t.have - of_use), f"more than {limit} were of no use")
