"""The account of what a run's workers use, each from its start to its end, by what it was used for. Pure.

Meters count up; the account adds differences. A word of a member that is lost on the way loses nothing: the next one
brings it. Of a member that dies, what it used since its last word is extrapolated from its power, and booked as `lost`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

USEFUL = ("train", "evaluate", "checkpoint")
WASTED = ("start", "regroup", "recompute", "idle", "lost")
PHASES = (*USEFUL, *WASTED)
"""What a worker's time and energy go into.

    train       steps; waiting for data and for peers is part of them
    evaluate
    checkpoint  the copy, the writing at the end, the export
    start       from the place in the cluster to the first view: imports, the model, the dry step
    regroup     forming a view, coming by the state, coming out of one that broke
    recompute   steps that were done before: rolled back, or done again after a resume
    idle        a worker without a view to be in
    lost        from the last word of a worker that died until its death was known
"""
UNITS = ("seconds", "joules", "dollars")
MEMORY_S = 5.0
"""Over how long a worker's power is averaged."""

_WORK = {"data": "train", "compute": "train", "update": "train", "snapshot": "train", "evaluate": "evaluate"}
_WORK |= {"checkpoint": "checkpoint", "export": "checkpoint"}


def phase_of(doing: str, *, entered: bool, again: bool) -> str:
    """The phase of a member that says it is `doing` so (`membership.messages.Progress`); `entered`: it holds the state;
    `again`: the step that it is at was done before."""
    phase = _WORK.get(doing, "regroup") if entered else "regroup"
    return "recompute" if again and phase == "train" else phase


@dataclass(slots=True)
class Line:
    """One worker. Times are seconds of the account's clock."""

    joined: float
    at: float
    """Everything is booked until then."""
    counter: float = 0.0
    """What its meter said last, in joules."""
    watts: float = 0.0
    source: str = ""
    phase: str = "start"
    per_hour: float | None = None
    """Dollars; None: there is no price."""
    price: str = ""
    """Where the price comes from."""
    seconds: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)

    def book(self, phase: str, now: float, joules: float) -> None:
        """`joules`, and the time since the last booking, go into `phase`."""
        took = max(0.0, now - self.at)
        self.seconds[phase] = self.seconds.get(phase, 0.0) + took
        self.joules[phase] = self.joules.get(phase, 0.0) + joules
        self.at, self.phase = max(self.at, now), phase

    def dollars(self) -> dict[str, float]:
        """By phase; empty: there is no price."""
        price = self.per_hour
        return {} if price is None else {phase: s * price / 3600 for phase, s in self.seconds.items()}


@dataclass(slots=True)
class Totals:
    """Of several workers, by phase: seconds of workers, joules, dollars."""

    seconds: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    dollars: dict[str, float] = field(default_factory=dict)
    """Empty: no worker had a price."""

    def add(self, line: Line) -> None:
        """A worker's whole line."""
        for mine, its in ((self.seconds, line.seconds), (self.joules, line.joules), (self.dollars, line.dollars())):
            for phase, amount in its.items():
                mine[phase] = mine.get(phase, 0.0) + amount

    def copy(self) -> Totals:
        """Another one with the same amounts."""
        return Totals(dict(self.seconds), dict(self.joules), dict(self.dollars))

    def to_json(self) -> dict[str, dict[str, float]]:
        """`dollars` only where they are known."""
        parts = zip(UNITS, (self.seconds, self.joules, self.dollars), strict=True)
        return {unit: _rounded(by_phase) for unit, by_phase in parts if by_phase or unit != "dollars"}


class Expenses:
    """All workers of a run: those that are there, line by line, and those that were."""

    def __init__(self) -> None:
        self.open: dict[str, Line] = {}
        """The workers that are there."""
        self.sources: set[str] = set()
        self.prices: set[str] = set()
        """What they said, over the whole run."""
        self.closed = Totals()
        """The workers that were there."""

    def join(self, worker: str, now: float) -> None:
        """It has its place; from now on it costs."""
        self.open[worker] = Line(now, now)

    def price(self, worker: str, per_hour: float, said: str) -> None:
        """What it costs, since it joined."""
        line = self.open[worker]
        line.per_hour, line.price = per_hour, said
        self.prices.add(said)

    def hear(self, worker: str, joules: float, source: str, phase: str, now: float) -> None:
        """Its meter stands at `joules`; what it used since its last word went into `phase`. A stranger is ignored: a
        late word of one that is gone."""
        line = self.open.get(worker)
        if line is None:
            return
        used, took = max(0.0, joules - line.counter), now - line.at
        line.counter, line.source = max(line.counter, joules), source
        self.sources.add(source)
        if took > 0:
            weight = 1.0 - math.exp(-took / MEMORY_S)
            line.watts += weight * (used / took - line.watts)
        line.book(phase, now, used)

    def leave(self, worker: str, now: float, *, lost: bool = False) -> Line:
        """It is gone; returns its line. `lost`: it died, and what it used since its last word is extrapolated."""
        line = self.open.pop(worker)
        line.book("lost" if lost else line.phase, now, line.watts * max(0.0, now - line.at) if lost else 0.0)
        self.closed.add(line)
        return line

    def totals(self) -> Totals:
        """Of all workers, as far as it is booked."""
        totals = self.closed.copy()
        for line in self.open.values():
            totals.add(line)
        return totals

    def watts(self) -> float:
        """The present power of all workers."""
        return sum(line.watts for line in self.open.values())

    def per_hour(self) -> float:
        """Dollars that all workers cost together."""
        return sum(line.per_hour or 0.0 for line in self.open.values())

    def dollars(self, now: float) -> float | None:
        """Until now, to the second; None: no worker had a price."""
        totals = self.totals()
        pending = [max(0.0, now - x.at) * x.per_hour / 3600 for x in self.open.values() if x.per_hour is not None]
        return sum(totals.dollars.values()) + sum(pending) if totals.dollars or pending else None

    # Into the ledger and back ------------------------------------------------------------------------------------

    def to_json(self, now: float) -> dict[str, Any]:
        """Totals by phase, and each line that is open; ages instead of times, which mean nothing to another process."""
        workers = {
            worker: {
                "age": round(now - line.joined, 3),
                "unbooked": round(max(0.0, now - line.at), 3),
                "counter": round(line.counter, 3),
                "watts": round(line.watts, 3),
                "source": line.source,
                "phase": line.phase,
                "per_hour": line.per_hour,
                "price": line.price,
                "seconds": _rounded(line.seconds),
                "joules": _rounded(line.joules),
            }
            for worker, line in self.open.items()
        }
        said = {"sources": sorted(self.sources), "prices": sorted(self.prices)}
        return {**self.totals().to_json(), "gone": self.closed.to_json(), **said, "workers": workers}

    @classmethod
    def from_json(cls, said: Mapping[str, Any], now: float) -> Expenses:
        """The account as an entry of the ledger has it; `now`: when that was, on this process's clock."""
        account = cls()
        for worker, its in said["workers"].items():
            known = {name: value for name, value in its.items() if name not in ("age", "unbooked")}
            account.open[worker] = Line(joined=now - its["age"], at=now - its["unbooked"], **known)
        account.sources, account.prices = set(said["sources"]), set(said["prices"])
        account.closed = Totals(*(dict(said["gone"].get(unit, {})) for unit in UNITS))
        return account


def split(by_phase: Mapping[str, float]) -> tuple[float, float]:
    """(useful, wasted) of amounts by phase."""
    return sum(by_phase.get(p, 0.0) for p in USEFUL), sum(by_phase.get(p, 0.0) for p in WASTED)


def _rounded(by_phase: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(by_phase[phase], 6) for phase in PHASES if by_phase.get(phase)}
