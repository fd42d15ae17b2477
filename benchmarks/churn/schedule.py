"""From a trace of a cloud's nodes to what is done to a few workers, and when. Pure.

A trace file has lines `milliseconds,what,node`; what is `add`, `remove` (without a word before) or `notice` (the node
is taken back with an announcement). `replay` follows the number of the trace's nodes with fewer workers and in less
time; `one_by_one` takes the lines as they are, each to be done when the run has settled after the one before.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

What = Literal["join", "kill", "leave"]
_WORDS: Mapping[str, What] = {"add": "join", "remove": "kill", "notice": "leave"}


@dataclass(frozen=True, slots=True)
class Change:
    """One line of a trace."""

    at_s: float
    what: What
    node: str


@dataclass(frozen=True, slots=True)
class Action:
    """What is done to the run."""

    at_s: float
    """Seconds after the run stands."""
    what: What
    slot: str
    """The place of one worker: it comes once and goes at most once."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens to one run."""

    name: str
    first: tuple[str, ...]
    """Slots that are there from the beginning."""
    actions: tuple[Action, ...]
    length_s: float
    """Seconds from standing to the end of what is measured; 0: as long as the run takes."""
    settled: bool = False
    """Each action waits until the run has settled after the one before; `at_s` does not count."""

    def sizes(self) -> list[tuple[float, int]]:
        """How many slots are there, from which second on."""
        sizes = [(0.0, len(self.first))]
        for action in self.actions:
            sizes.append((action.at_s, sizes[-1][1] + (1 if action.what == "join" else -1)))
        return sizes


def read_trace(path: Path) -> list[Change]:
    """The lines of a trace file in order of time. Raises ValueError with the line that is wrong."""
    changes = []
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row:
                continue
            try:
                at, word, node = row
                changes.append(Change(int(at) / 1000, _WORDS[word], node))
            except (ValueError, KeyError):
                raise ValueError(
                    f"{path.name}:{number}: {','.join(row)!r} is not milliseconds,{'|'.join(_WORDS)},node"
                ) from None
    return sorted(changes, key=lambda c: c.at_s)


def replay(name: str, trace: Sequence[Change], *, workers: int, faster: float) -> Schedule:
    """The trace at `faster` times its speed on at most `workers` slots.

    The number of slots is `workers` times the trace's nodes over the most that it ever has, rounded (a half to the even
    number), at least 1. So a change of a few nodes among many is none here, and the rest come as often as there. Of the
    slots that are there when the k-th goes, it is number k modulo their count in order of arrival: old and new ones in
    turn. At its end all slots come, so that runs are finished sooner: that is no part of what is measured.
    """
    counts = _counts(trace)
    most = max(n for _, n in counts)
    there: list[str] = []
    actions: list[Action] = []
    first: tuple[str, ...] = ()
    came = went = 0
    for at, nodes in counts:
        wanted = max(1, round(workers * nodes / most))
        moment = (at - counts[0][0]) / faster
        while len(there) < wanted:
            there.append(f"slot{came}")
            actions.append(Action(moment, "join", there[-1]))
            came += 1
        while len(there) > wanted:
            actions.append(Action(moment, "kill", there.pop(went % len(there))))
            went += 1
        if moment == 0:
            first, actions = tuple(there), []
    length = (counts[-1][0] - counts[0][0]) / faster
    actions += [Action(length, "join", f"slot{came + i}") for i in range(workers - len(there))]
    return Schedule(name, first, tuple(actions), length)


def one_by_one(name: str, trace: Sequence[Change]) -> Schedule:
    """The lines at time 0 are there from the beginning; each other one waits until the run has settled."""
    begin = trace[0].at_s
    first = tuple(c.node for c in trace if c.at_s == begin)
    actions = tuple(Action(c.at_s - begin, c.what, c.node) for c in trace if c.at_s > begin)
    return Schedule(name, first, actions, 0.0, settled=True)


def calm(workers: int) -> Schedule:
    """Nothing happens to so many workers."""
    return Schedule(f"calm{workers}", tuple(f"slot{i}" for i in range(workers)), (), 0.0)


def _counts(trace: Iterable[Change]) -> list[tuple[float, int]]:
    """How many nodes the trace has, after all that happens at one moment."""
    counts: list[tuple[float, int]] = []
    nodes = 0
    for change in trace:
        nodes += 1 if change.what == "join" else -1
        if counts and counts[-1][0] == change.at_s:
            counts[-1] = (change.at_s, nodes)
        else:
            counts.append((change.at_s, nodes))
    return counts


TRACES = Path(__file__).parent / "traces"
FASTER = 600.0
"""The trace's 11.4 hours in 68 seconds."""


def schedule(name: str, workers: int) -> Schedule:
    """By name: `p3`, `one-by-one`, or `calm1` to `calm4`. Raises ValueError."""
    if name == "p3":
        return replay(name, read_trace(TRACES / "aws-p3-spot.csv"), workers=workers, faster=FASTER)
    if name == "one-by-one":
        return one_by_one(name, read_trace(TRACES / "one-by-one.csv"))
    if name.startswith("calm") and name[4:].isdigit():
        return calm(int(name[4:]))
    raise ValueError(f"there is no trace {name!r}; there are p3, one-by-one, calm1 to calm{workers}")
