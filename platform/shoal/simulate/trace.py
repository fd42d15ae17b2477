"""Traces: when nodes are offered and when they are taken away. Read from a file, or made by chance from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from random import Random
from typing import Literal

from shoal.errors import ConfigError

FORM = "lines of milliseconds,add|remove,node, such as 60000,add,node19"


@dataclass(frozen=True, slots=True)
class Event:
    """A node is offered, or taken away."""

    at_s: float
    """Seconds since the beginning."""
    what: Literal["add", "remove"]
    node: str
    notice_s: float = 0.0
    """A removal was announced so long before; 0: it was not."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Events in order of time."""

    events: tuple[Event, ...]
    length_s: float
    """When what the trace tells ends."""
    source: str
    """For people: where it comes from."""

    @property
    def peak(self) -> int:
        """The most nodes that are there at once."""
        return max((there for _, there in self._counts()), default=0)

    @property
    def removals(self) -> int:
        """How many nodes are taken away."""
        return sum(e.what == "remove" for e in self.events)

    def _counts(self) -> Iterator[tuple[float, int]]:
        there = 0
        for event in self.events:
            there += 1 if event.what == "add" else -1
            yield event.at_s, there


def read_trace(lines: Iterable[str], name: str) -> Trace:
    """The trace in the lines of the file `name`. Raises ConfigError that names the first line that is wrong."""
    events: list[Event] = []
    there: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        event = _event(line, f"{name}, line {number}")
        if events and event.at_s < events[-1].at_s:
            raise ConfigError(
                f"{name}, line {number}: {1e3 * event.at_s:.0f} ms is before the line above it "
                f"({1e3 * events[-1].at_s:.0f} ms); sort the lines by time"
            )
        if (event.node in there) is (event.what == "add"):
            known = "is there already" if event.what == "add" else "is not there"
            raise ConfigError(
                f"{name}, line {number}: {event.what} {event.node}, but that node {known}; mend the trace"
            )
        there ^= {event.node}
        events.append(event)
    if not any(e.what == "add" for e in events):
        raise ConfigError(f"{name} has no node at all; a trace has {FORM}")
    return Trace(tuple(events), events[-1].at_s, name)


def _event(line: str, where: str) -> Event:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 3:
        raise ConfigError(f"{where}: {line.strip()!r} has {len(parts)} values, not 3; a trace has {FORM}")
    milliseconds, what, node = parts
    try:
        at = float(milliseconds)
    except ValueError:
        at = -1.0
    if not 0 <= at < float("inf"):
        raise ConfigError(f"{where}: {milliseconds!r} is no time in milliseconds, 0 or more; a trace has {FORM}")
    if what not in ("add", "remove"):
        raise ConfigError(f"{where}: {what!r} is neither add nor remove; a trace has {FORM}")
    if not node:
        raise ConfigError(f"{where}: the node has no name; a trace has {FORM}")
    return Event(at / 1e3, "add" if what == "add" else "remove", node)


def poisson(nodes: int, *, between_s: float, away_s: float, length_s: float, seed: int) -> Trace:
    """`nodes` nodes, of which one is lost each `between_s` seconds on average, at random and independently; another one
    is offered `away_s` later."""
    random = Random(seed)
    events = [Event(0.0, "add", f"node{i}") for i in range(nodes)]
    each_s = between_s * nodes
    removals = [(random.expovariate(1 / each_s), f"node{i}") for i in range(nodes)]
    heapify(removals)
    made = nodes
    while removals:
        at, node = heappop(removals)
        if at > length_s:
            continue
        events.append(Event(at, "remove", node))
        back, made = at + away_s, made + 1
        if back <= length_s:
            events.append(Event(back, "add", f"node{made - 1}"))
            heappush(removals, (back + random.expovariate(1 / each_s), f"node{made - 1}"))
    said = f"synthetic: one of {nodes} nodes lost each {between_s / 3600:g} h, another {away_s:g} s later, seed {seed}"
    return Trace(tuple(sorted(events, key=lambda e: e.at_s)), length_s, said)


def changed(
    trace: Trace, *, faster: float = 1.0, spread_s: float = 0.0, notice_share: float = 0.0, notice_s: float, seed: int
) -> Trace:
    """`trace`, played `faster` times as fast; each event up to `spread_s` later by chance (a trace by the minute shows
    what happened within one as one blow); of the removals a part `notice_share` announced `notice_s` before."""
    random = Random(seed)
    events: list[Event] = []
    before: dict[str, float] = {}
    for event in trace.events:
        late, told = random.uniform(0.0, spread_s) * (event.at_s > 0), random.random() < notice_share
        at = max(event.at_s / faster + late, before.get(event.node, 0.0))
        notice = min(notice_s, at - before[event.node]) if event.what == "remove" and told else 0.0
        events.append(replace(event, at_s=at, notice_s=notice))
        before[event.node] = at
    events.sort(key=lambda e: e.at_s)
    return replace(trace, events=tuple(events), length_s=max(trace.length_s / faster, events[-1].at_s))
