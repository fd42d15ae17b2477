"""From ledger entries to MLflow's points: pure, and the same whenever it is done and however often.

A replay of the same ledger gives the same points with the same timestamps, and MLflow stores equal points once. That
is why a crash between "sent" and "noted as sent" does no harm.

Each step's loss, learning rate and gradient norm become points of their own. Times, rates and the number of workers
become one point per second of the run (per step, where steps are longer than a second), so that a run of 50 steps a
second does not cost five times as much to record as its loss curve is worth. Each change of the membership becomes
points at the first step after it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from shoal.tracking.changes import PARTS
from shoal.tracking.expenses import split
from shoal.tracking.ledger import Entry
from shoal.tracking.settings import TrialOf, best_key, better

# MLflow's UI shows groups in alphabetical order: these names put the curves of training and validation on top.
PER_STEP = {"loss": "train/loss", "lr": "train/learning_rate", "grad_norm": "train/gradient_norm"}
RATES = {"samples_per_s": "work/samples_per_s", "tokens_per_s": "work/tokens_per_s"}
TIMES = {f"{part}_s": f"work/{part}_s" for part in ("step", "data_wait", "compute", "communicate", "update")}
WORKERS = "work/workers"
LATEST = {
    "workers": WORKERS, "batch": "train/batch_size", "noise_scale": "train/noise_scale",
    "critical_batch": "train/critical_batch",
}  # fmt: skip
"""What hardly changes from step to step: its value at the end of the second."""
CHANGES = {what: f"work/{what}_s" for what in ("join", "leave", "loss", "hang")}
"""Seconds that the members who stayed did no step, for each kind of change of the membership."""
COSTS = {f"{part}_s": f"work/{part}_s" for part in PARTS}
REDONE = "work/steps_redone"
BEST = "val/loss.best"
REASON, ERROR = "stop_reason", "error"
"""Tags of a run that has ended: why; and, if it failed, once more under the name that people search for."""
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

ENOUGH = 900
"""Points after which a parcel is closed; MLflow takes 1000 a call."""


class Point(NamedTuple):
    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the ledger has been sent."""

    offset: int = 0
    """Byte of the ledger up to which everything is in MLflow."""
    step: int = 0
    """Highest step whose points are in MLflow. After a resume, steps up to this one are not sent again."""
    evaluation: int = 0
    """The same for evaluations. The evaluation of the untrained model is at step 0, hence `evaluated`."""
    evaluated: bool = False
    best: float | None = None
    """Lowest `val/loss` so far."""
    objective: float | None = None
    """Of a trial: the best value so far of what its sweep judges it by."""


@dataclass(slots=True)
class Parcel:
    """What goes to MLflow together, and how far that brings the record."""

    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None
    """MLflow's status to set after the points."""
    time_ms: int = 0
    """When the status changed."""
    progress: Progress = field(default_factory=Progress)


def parcels(
    scanned: Iterable[tuple[Entry, int]],
    progress: Progress,
    *,
    before: float = math.inf,
    enough: int = ENOUGH,
    trial: TrialOf | None = None,
) -> Iterator[Parcel]:
    """Parcels for the entries of `scanned` that are older than `before` (Unix seconds, a whole number).

    A commit of the second that still runs is left for later, because its second's means are not final. `progress`
    belongs to the offset at which `scanned` begins. A `trial` also tells the best value so far of its sweep's metric.
    """
    parcel = Parcel(progress=progress)
    for group, end in _groups(scanned, before):
        if group[0]["kind"] == "commit":
            parcel.points += _second(group, parcel.progress)
            step = max(parcel.progress.step, group[-1]["step"])
            parcel.progress = replace(parcel.progress, step=step, offset=end)
        else:
            _note(group[0], parcel, trial)
            parcel.progress = replace(parcel.progress, offset=end)
        if parcel.status or len(parcel.points) >= enough:
            yield parcel
            parcel = Parcel(progress=parcel.progress)
            progress = parcel.progress
    if parcel.progress.offset > progress.offset:
        yield parcel


def _groups(scanned: Iterable[tuple[Entry, int]], before: float) -> Iterator[tuple[list[Entry], int]]:
    """Commits of one second together, other entries alone; each group with the ledger's offset behind it."""
    commits: list[Entry] = []
    at = 0
    for entry, end in scanned:
        if entry["time"] >= before:
            break
        if entry["kind"] == "course":  # nothing of it is sent, and there are as many as commits
            at = end
            continue
        if commits and (entry["kind"] != "commit" or int(entry["time"]) != int(commits[0]["time"])):
            yield commits, at
            commits = []
        if entry["kind"] == "commit":
            commits.append(entry)
        else:
            yield [entry], end
        at = end
    if commits:
        yield commits, at


def _second(commits: list[Entry], progress: Progress) -> list[Point]:
    """Points of the commits of one second, without those of steps that were sent before a roll-back."""
    new = [c for c in commits if c["step"] > progress.step]
    if not new:
        return []
    out = [
        Point(key, float(commit[name]), _ms(commit), commit["step"])
        for commit in new
        for name, key in PER_STEP.items()
        if commit.get(name) is not None
    ]
    for commit in new:
        for source, told in (commit.get("sources") or {}).items():
            out.append(Point(clean_key(f"train/loss.{source}"), float(told["loss"]), _ms(commit), commit["step"]))
    last = new[-1]
    for name, key in {**TIMES, **RATES}.items():
        known = [c for c in new if c.get(name) is not None]
        weights = [float(c.get("step_s") or 0.0) if name in RATES else 1.0 for c in known]
        if not any(weights):
            weights = [1.0] * len(known)
        if known:
            mean = sum(w * float(c[name]) for w, c in zip(weights, known, strict=True)) / sum(weights)
            out.append(Point(key, mean, _ms(last), last["step"]))
    for name, key in LATEST.items():
        if last.get(name) is not None:
            out.append(Point(key, float(last[name]), _ms(last), last["step"]))
    return out


def _note(entry: Entry, parcel: Parcel, trial: TrialOf | None) -> None:
    kind, progress = entry["kind"], parcel.progress
    if kind == "evaluation" and (entry["step"] > progress.evaluation or not progress.evaluated):
        values = {clean_key(k): float(v) for k, v in entry["metrics"].items() if v is not None}
        best = progress.best
        if (loss := values.get("val/loss")) is not None and not math.isnan(loss):
            best = loss if best is None else min(best, loss)
            values[BEST] = best
        objective = progress.objective
        if trial is not None and (value := entry["metrics"].get(trial.metric)) is not None:
            objective = float(value) if better(float(value), objective, trial.mode) else objective
            if objective is not None:
                values[clean_key(best_key(trial.metric))] = objective
        parcel.points += [Point(k, v, _ms(entry), entry["step"]) for k, v in values.items()]
        parcel.progress = replace(progress, evaluation=entry["step"], evaluated=True, best=best, objective=objective)
    elif kind == "change":
        parcel.points += _change(entry)
    elif kind == "cost":
        parcel.points += _cost(entry)
        names = {"shoal.energy_source": entry["sources"], "shoal.price": entry["prices"]}
        parcel.tags |= {name: "; ".join(said) for name, said in names.items() if said}
    elif kind == "checkpoint" and not entry.get("error"):
        parcel.tags |= {"shoal.checkpoint": str(entry["uri"]), "shoal.checkpoint_step": str(entry["step"])}
    elif kind in ("start", "resume", "view"):
        # After an earlier end, each of these says that the run goes on.
        parcel.status, parcel.time_ms = "RUNNING", _ms(entry)
    elif kind == "end":
        parcel.status, parcel.time_ms = STATUS[entry["status"]], _ms(entry)
        parcel.tags[REASON] = str(entry.get("reason") or entry["status"])
        if entry["status"] == "failed":
            parcel.tags[ERROR] = parcel.tags[REASON]


def _change(entry: Entry) -> list[Point]:
    """A change of the membership at the first step after it: what happened, and where its time went."""
    values = {CHANGES.get(entry["what"]): entry.get("idle_s"), REDONE: entry.get("steps_redone")}
    values |= {key: entry.get(name) for name, key in COSTS.items()}
    return [Point(k, float(v), _ms(entry), int(entry["step"])) for k, v in values.items() if k and v is not None]


def _cost(entry: Entry) -> list[Point]:
    """What the run has used so far, the wasted part of it, and what a million tokens (or samples) took."""
    values = {"cost/co2_g": entry["co2_g"]}
    counted = "tokens" if entry.get("tokens") else "samples"
    for unit in ("joules", "dollars"):
        if by_phase := entry.get(unit):
            useful, wasted = split(by_phase)
            values |= {f"cost/{unit}": useful + wasted, f"cost/{unit}_wasted": wasted}
            if amount := entry.get(counted):
                values[f"cost/{unit}_per_million_{counted}"] = (useful + wasted) / amount * 1e6
    return [Point(key, float(value), _ms(entry), int(entry["step"])) for key, value in values.items()]


def unsent(scanned: Iterable[tuple[Entry, int]], progress: Progress) -> int:
    """How many steps, evaluations and changes of status beyond `progress` are not in MLflow yet."""
    waiting: set[tuple[str, int]] = set()
    for entry, end in scanned:
        kind = entry["kind"]
        if (kind == "commit" and entry["step"] > progress.step) or (
            kind == "evaluation" and (entry["step"] > progress.evaluation or not progress.evaluated)
        ):
            waiting.add((kind, entry["step"]))
        elif kind in ("start", "end"):
            waiting.add((kind, end))
    return len(waiting)


def clean_key(key: str) -> str:
    """`key` as MLflow takes it: other characters become `_`, empty and dotted parts of a path go."""
    parts = re.sub(r"[^\w\-. :/]", "_", key)[:250].split("/")
    return "/".join(p for p in parts if p not in ("", ".", "..")) or "_"


def _ms(entry: Entry) -> int:
    return round(entry["time"] * 1000)
