"""Who is persistently slower than its peers, and how virtual shards are divided among unequal members. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from shoal.membership.view import MemberId, View

SLOWER = 1.5
"""A member that needs this many times as long as the others' median for the same work is slow."""
STEPS = 20
"""For so many steps in a row it must be slow before that is called persistent."""
NOISE = 0.05
"""Speeds are measured: a division that promises less than this part of the step time is not worth being uneven."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A member that was slow in each of the last `steps` steps; `factor`: how many times as long it needs."""

    member: MemberId
    factor: float
    steps: int


class Paces:
    """Compute seconds per virtual shard of each member over the last steps; one object for all views of a run.

    A member's own compute time, not the step's: in a step all wait for the slowest. An engine whose passes are
    collective (ZeRO 3) waits inside of them, and there nobody stands out.
    """

    def __init__(self, *, factor: float = SLOWER, steps: int = STEPS) -> None:
        self._factor, self._steps = factor, steps
        self._times: dict[MemberId, deque[tuple[int, float]]] = {}
        self._speeds: dict[MemberId, float] = {}

    def add(self, member: MemberId, step: int, seconds: float) -> None:
        """`member` needed `seconds` of compute per virtual shard in `step`. Steps come in order; repeats do nothing."""
        times = self._times.setdefault(member, deque(maxlen=self._steps))
        if not times or step > times[-1][0]:
            times.append((step, seconds))

    def keep(self, members: Iterable[MemberId]) -> None:
        """A new view of `members`: times begin anew, since a node's neighbours change with it; speeds stay known."""
        self._speeds = self.speeds()
        self._times = {m: deque(maxlen=self._steps) for m in members}

    def stragglers(self) -> tuple[Straggler, ...]:
        """The persistently slow, slowest first. With two members the other one is the peer."""
        found = []
        by_step: dict[int, list[float]] = {}
        for times in self._times.values():
            for step, seconds in times:
                by_step.setdefault(step, []).append(seconds)
        of_all = {step: sorted(seconds) for step, seconds in by_step.items()}
        for member, times in self._times.items():
            ratios = [_ratio(seconds, of_all[step]) for step, seconds in times]
            if len(ratios) == self._steps and min(ratios) > self._factor:
                found.append(Straggler(member, median(ratios), len(ratios)))
        return tuple(sorted(found, key=lambda s: -s.factor))

    def speeds(self) -> dict[MemberId, float]:
        """Virtual shards per second of compute of all who were measured for long enough, in this view or before."""
        speeds = dict(self._speeds)
        for member, times in self._times.items():
            typical = median(seconds for _, seconds in times) if len(times) == self._steps else 0.0
            if typical > 0:
                speeds[member] = 1.0 / typical
        return speeds


def cuts_for(speeds: Sequence[float], virtual_shards: int) -> tuple[int, ...] | None:
    """Where each member's virtual shards begin if the step is to be over soonest; None: an even division is as good.

    `speeds`: of each member in rank order, in any unit. Everybody gets at least one shard.
    """
    assert 0 < len(speeds) <= virtual_shards, f"{len(speeds)} members for {virtual_shards} virtual shards"
    if len(set(speeds)) == 1:
        return None
    counts = [1] * len(speeds)
    for _ in range(virtual_shards - len(speeds)):
        # Whoever would be done first with one more; among equals the last, as an even division does.
        counts[min(range(len(speeds)), key=lambda i: ((counts[i] + 1) / speeds[i], -i))] += 1
    cuts = tuple(sum(counts[:i]) for i in range(len(counts) + 1))
    even = View(0, tuple(map(str, range(len(speeds))))).bounds(virtual_shards)
    return cuts if pace(cuts, speeds) < (1.0 - NOISE) * pace(even, speeds) else None


def pace(bounds: Sequence[int], speeds: Sequence[float]) -> float:
    """Seconds (in the unit of `speeds`) that the slowest member computes in a step that is divided at `bounds`."""
    return max((bounds[i + 1] - bounds[i]) / speeds[i] for i in range(len(speeds)))


def relative(speeds: Mapping[MemberId, float], members: Sequence[MemberId]) -> list[float]:
    """Speeds in rank order with the typical one as 1; members of unknown speed count as typical."""
    known = [s for s in speeds.values() if s > 0]
    typical = median(known) if known else 1.0
    return [speeds.get(m, typical) / typical for m in members]


def _ratio(seconds: float, of_all: Sequence[float]) -> float:
    """How many times as long as the others' median; `of_all`: in rising order, with `seconds` among them."""
    count = len(of_all) - 1
    if not count:
        return 0.0
    own, middle = bisect_left(of_all, seconds), count // 2
    high = of_all[middle + (middle >= own)]  # of the others, whom one may think of as the rest of the row
    low = high if count % 2 else of_all[middle - 1 + (middle - 1 >= own)]
    typical = (low + high) / 2
    return seconds / typical if typical > 0 else 0.0
