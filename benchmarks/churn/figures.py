"""From the log of a run to all figures, for every arm alike. Pure.

A log is a list of events, each one JSON object, in order of time `t` (Unix seconds). The kinds and their other fields:

    run       arm, trace, steps (to do), batch (samples of a step), load, machine, settings {name: value}, workload
    ready     workers (places at the beginning): all have one; what is measured begins here
    join|kill|leave
              slot, at (seconds after `ready` at which it was due); t is when it was done
    begun     pid, rank: a process of the loop trains
    step      step (from 1), view (what names one formation of the group, whatever the system calls it), workers:
              it is applied, and everybody goes on from it; the same step again, if the work was lost and is redone
    redone    samples: of applied steps that were thrown away, where the log has no second `step` of them
    parts     what join|loss|leave, detect_s, regroup_s, state_s, resume_s, idle_s: what a system says of a change
    memory    bytes, processes: of the training processes
    end       steps (in the result), digest (of the final parameters; empty: the run was broken off)
    stuck     why: the run did not come to what was waited for
    over      seconds, cpu_s: of the whole, with starting and ending
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Event = Mapping[str, Any]
CHANGES = ("join", "kill", "leave")
SETTLED_STEPS = 5
"""Steps of a view from which its usual step time is taken, at least."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What one change cost. Only of changes that no other one overlaps."""

    what: str
    next_step_s: float
    """From the change to the end of the first step of the view that follows."""
    idle_s: float
    """Those who stay did no step for so long: as the system says, else the longest pause between two steps of different
    views less the usual step."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """detect, regroup, state, resume: seconds, where the system tells them."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run."""

    speed: float | None
    """Samples per second of the steps after the first tenth, by the median step; only of a run without changes."""
    goodput: float | None
    """Useful samples over those that lossless workers would have done; only of a run with a length."""
    recoveries: tuple[Recovery, ...]
    lost: int
    """Samples of the result's steps that it has never seen."""
    repeated: int
    """Samples that were computed again after a finished step."""
    peak_bytes: int | None
    digest: str


def figures(log: Sequence[Event], speeds: Mapping[int, float] | None = None, length_s: float = 0.0) -> Figures:
    """All figures of one run. `speeds`: fault-free samples per second by number of workers; `length_s`: of the trace.

    Raises ValueError if the log has no `ready` or no `end`.
    """
    ready, end = _only(log, "ready"), _only(log, "end")
    run = _only(log, "run")
    changed = any(e["kind"] in CHANGES for e in log)
    return Figures(
        speed=None if changed else speed(log, run["batch"]),
        goodput=goodput(log, speeds, length_s) if speeds and length_s else None,
        recoveries=tuple(recoveries(log)),
        lost=(end["steps"] - _covered(log, end["steps"])) * run["batch"],
        repeated=repeated(log, run["batch"]),
        peak_bytes=max((e["bytes"] for e in log if e["kind"] == "memory" and e["t"] >= ready["t"]), default=None),
        digest=end["digest"],
    )


def speed(log: Sequence[Event], batch: int) -> float | None:
    """Samples per second by the median time from one step to the next."""
    steps = _steps(log)
    steps = steps[len(steps) // 10 :]
    taken = [e.get("step_s") or e["t"] - before["t"] for before, e in pairwise(steps)]
    return batch / statistics.median(taken) if taken else None


def goodput(log: Sequence[Event], speeds: Mapping[int, float], length_s: float) -> float:
    """Useful samples, over what as many workers as the trace has at each moment would have done without any loss.

    Useful is a step by its last execution: one that was thrown away later does not count. The time is that of the
    trace, or until the run was finished, if that is sooner.
    """
    begin, run = _only(log, "ready")["t"], _only(log, "run")
    last = {e["step"]: e["t"] for e in _steps(log)}
    finish = last.get(run["steps"])
    until = min(begin + length_s, finish) if finish is not None else begin + length_s
    useful = sum(begin < t <= until for t in last.values()) * run["batch"]
    return useful / ideal(log, speeds, until - begin)


def ideal(log: Sequence[Event], speeds: Mapping[int, float], length_s: float) -> float:
    """Samples of workers that lose nothing, at the fault-free speed of as many as there are at each moment."""
    at, workers, samples = 0.0, _only(log, "ready")["workers"], 0.0
    for event in [e for e in log if e["kind"] in CHANGES] + [{"at": length_s, "kind": ""}]:
        moment = min(event["at"], length_s)
        samples += (moment - at) * speeds[workers]
        at = moment
        workers += {"join": 1, "kill": -1, "leave": -1}.get(event["kind"], 0)
    return samples


def recoveries(log: Sequence[Event]) -> list[Recovery]:
    """Each change that was over, by a step of another view, before the next one came."""
    changes = [e for e in log if e["kind"] in CHANGES]
    steps = _steps(log)
    said = [e for e in log if e["kind"] == "parts"]
    found = []
    for number, change in enumerate(changes):
        until = changes[number + 1]["t"] if number + 1 < len(changes) else float("inf")
        before = [s for s in steps if s["t"] <= change["t"]]
        if not before:
            continue
        old = before[-1]["view"]
        after = [s for s in steps if change["t"] < s["t"] < until and s["view"] != old]
        if not after:
            continue
        words = [p for p in said if change["t"] < p["t"] < until and p["what"] == _SAID[change["kind"]]]
        parts = {k: words[0][f"{k}_s"] for k in ("detect", "regroup", "state", "resume")} if words else {}
        idle = words[0]["idle_s"] if words else _idle(steps, after)
        found.append(Recovery(change["kind"], after[0]["t"] - change["t"], idle, parts))
    return found


_SAID = {"join": "join", "kill": "loss", "leave": "leave"}


def _idle(steps: Sequence[Event], after: Sequence[Event]) -> float:
    """The pause before the first step of the new view, less its usual step."""
    first = after[0]
    last = next(s for s in reversed(steps) if s["t"] < first["t"])
    same = [s["t"] for s in after if s["view"] == first["view"]]
    usual = statistics.median(b - a for a, b in pairwise(same)) if len(same) > 1 else 0.0
    return max(0.0, first["t"] - last["t"] - usual)


def repeated(log: Sequence[Event], batch: int) -> int:
    """Samples of steps that were applied more than once, and what the system says that it threw away."""
    again = sum(n - 1 for n in Counter(e["step"] for e in _steps(log)).values())
    return again * batch + sum(e["samples"] for e in log if e["kind"] == "redone")


def _covered(log: Sequence[Event], steps: int) -> int:
    """How many of the steps that the result is said to have were ever applied."""
    return len({e["step"] for e in _steps(log) if e["step"] <= steps})


def _steps(log: Sequence[Event]) -> list[Event]:
    return [e for e in log if e["kind"] == "step"]


def _only(log: Sequence[Event], kind: str) -> Event:
    found = [e for e in log if e["kind"] == kind]
    if len(found) != 1:
        raise ValueError(f"the log has {len(found)} events {kind!r}, and needs one")
    return found[0]
