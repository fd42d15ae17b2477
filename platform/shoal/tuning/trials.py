"""What a sweep has come to: its trials as rows, made of the sweep's ledger alone.

Pure: the resume, the display, the report and the record all read this, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from shoal.errors import ConfigError
from shoal.tracking.ledger import read as read_entries

TrialStatus = Literal["running", "finished", "stopped-early", "failed", "interrupted"]
"""running: suggested, and not ended as far as the ledger says. finished: used its budget up. stopped-early: by the rule
of the sweep. failed: with an error of its own. interrupted: by the user or the sweep's end; it can be continued."""
SweepStatus = Literal["running", "finished", "stopped", "failed"]
Value = bool | int | float | str | None
RESOURCES = ("steps", "samples", "seconds", "joules", "dollars")
"""What early stopping may count."""
Cost = Literal["worker_seconds", "seconds", "joules", "dollars"]
SPENT: tuple[Cost, ...] = get_args(Cost)
"""What trials use up, and what is summed over all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One evaluation of a trial."""

    value: float
    """The sweep's metric; NaN if it was not finite."""
    metrics: Mapping[str, float]
    """Everything that was evaluated."""
    step: int
    samples: int
    """Samples read so far, over all parts of the trial."""
    seconds: float
    """Seconds of committed steps so far."""
    worker_seconds: float = 0.0
    """The same, times the workers that computed them."""
    joules: float | None = None
    dollars: float | None = None
    """None: the run does not account for it."""

    def resource(self, name: str) -> float | None:
        """How much was used of one of `RESOURCES`; None: not known."""
        found = getattr(self, "step" if name == "steps" else name)
        return None if found is None else float(found)


@dataclass(kw_only=True, slots=True)
class TrialRow:
    """One trial as it stands."""

    number: int
    """From 0 on, in the order of suggestion; the same after a resume."""
    name: str
    """`NAME-07`: also the run's id, unless it had to begin anew (then `NAME-07-2`)."""
    run_id: str
    """The run that trains it now, or did last."""
    fields: dict[str, Value]
    """What differs from the base job: flat, typed, by dotted name. `schedule` holds the family's name, and
    `schedule.warmup` and so on that family's own parameters; a family's parameters exist only with it."""
    status: TrialStatus = "running"
    reason: str = ""
    """Why it was stopped early, or interrupted; of a failed one the error's text."""
    folder: str = ""
    """The run's folder."""
    curve: list[Point] = field(default_factory=list)
    best: float | None = None
    """The best value so far by the sweep's mode; None: none yet."""
    started: float | None = None
    ended: float | None = None
    """Unix seconds."""
    total_steps: int | None = None
    """Steps in its whole budget; None: it has not started yet."""
    now: int | None = None
    """The step that it is at now, where somebody looked (the ledger does not say it)."""
    runs: list[str] = field(default_factory=list)
    """All runs that it had, the last one included: a population's trial has one for each fork."""
    parent: int | None = None
    """The trial whose checkpoint it goes on from (population); None: its own beginning."""

    @property
    def last(self) -> Point | None:
        return self.curve[-1] if self.curve else None

    @property
    def metric(self) -> float | None:
        """The last value of the sweep's metric."""
        return self.last.value if self.last else None

    @property
    def step(self) -> int:
        return self.last.step if self.last else 0

    @property
    def samples(self) -> int:
        return self.last.samples if self.last else 0

    @property
    def seconds(self) -> float:
        return self.last.seconds if self.last else 0.0

    @property
    def worker_seconds(self) -> float:
        return self.last.worker_seconds if self.last else 0.0

    @property
    def joules(self) -> float | None:
        return self.last.joules if self.last else None

    @property
    def dollars(self) -> float | None:
        return self.last.dollars if self.last else None

    @property
    def over(self) -> bool:
        """Whether nothing more comes, unless the sweep is resumed."""
        return self.status != "running"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepFacts:
    """The sweep as it was opened (last): the values of `Sweep`, as text where they are objects."""

    job: str
    """Name of the base job, which is also its MLflow experiment."""
    recipe: str
    """The sweep recipe."""
    base: str
    """What `shoal train` takes for the base job; "" if the sweep recipe makes it."""
    base_digest: str
    """`job_digest` of the base job without the searched fields."""
    base_fields: Mapping[str, str]
    """All values of the base job as text (`flatten`)."""
    space: tuple[Mapping[str, Any], ...]
    """One for each axis: {"name": dotted name, "kind": "range", "low": ..., "high": ..., "log": bool, "step": ... or
    None, "whole": bool} or {"name": ..., "kind": "choice", "values": [...]}; of a family's own parameter also
    "only_with": {"schedule": "Cosine"}. A parameter that several families have is an axis for each of them."""
    metric: str
    mode: Literal["min", "max"]
    search: str
    stop_early: str | None
    resource: str
    """What early stopping counts, or the curve's natural axis: samples, seconds, joules, dollars or steps."""
    rungs: tuple[float, ...]
    """Amounts of the resource at which trials are compared; empty where the rule has none."""
    objectives: tuple[str, ...]
    """Of a multi-objective sweep, the first is `metric`; empty otherwise."""
    trials: int
    at_once: int
    workers: int
    budget: Mapping[str, float]
    """Of the whole sweep: {"seconds": ..., "dollars": ..., "joules": ...}, those that are set."""
    first: tuple[Mapping[str, Value], ...] = ()
    """Points that were tried first, as a yardstick."""


@dataclass(kw_only=True, slots=True)
class SweepState:
    """A sweep as it stands."""

    name: str
    folder: str
    facts: SweepFacts
    rows: list[TrialRow]
    """By number."""
    started: float
    """Unix seconds."""
    opened: float
    """When it was started or resumed last."""
    latest: float
    """When its ledger was last written."""
    seconds_before: float = 0.0
    """For how long it went on before that."""
    ended: float | None = None
    status: SweepStatus = "running"
    reason: str = ""

    def elapsed(self, now: float) -> float:
        """Seconds of wall-clock time that it has gone on for, over all its resumes."""
        return self.seconds_before + ((self.ended or now) - self.opened)

    @property
    def best(self) -> TrialRow | None:
        """The trial with the best value; of those that are not over, too. Failed ones do not count."""
        return next(iter(self.ranked), None)

    @property
    def ranked(self) -> list[TrialRow]:
        """The trials with a value, the best one first. Failed ones have none that counts."""
        able = [r for r in self.rows if r.best is not None and r.status != "failed"]
        sign = 1 if self.facts.mode == "min" else -1
        return sorted(able, key=lambda r: (sign * (r.best or 0.0), r.number))

    @property
    def yardstick(self) -> TrialRow | None:
        """The best of the trials that the sweep was told to begin with."""
        told = [r for r in self.rows if r.fields in self.facts.first and r.best is not None and r.status != "failed"]
        sign = 1 if self.facts.mode == "min" else -1
        return min(told, key=lambda r: (sign * (r.best or 0.0), r.number), default=None)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status, and `waiting`: those that are not suggested yet."""
        found = dict.fromkeys(("running", "finished", "stopped-early", "failed", "interrupted"), 0)
        for row in self.rows:
            found[row.status] += 1
        return {**found, "waiting": max(0, self.facts.trials - len(self.rows))}

    def spent(self, what: Cost) -> float | None:
        """Sum over all trials; None if no trial tells."""
        known = [v for r in self.rows if r.last is not None and (v := getattr(r.last, what)) is not None]
        return float(sum(known)) if known else None


def heard(folder: Path, state: SweepState | None, entry: Mapping[str, Any]) -> SweepState:
    """The sweep after one more entry of its ledger; None: there was none before. Changes `state` itself.

    Raises ConfigError if the first entry is not its opening.
    """
    kind = entry["kind"]
    if kind == "opened":
        state = _opened(folder, entry, state)
    elif state is None:
        raise ConfigError(f"{folder} is no sweep: its ledger does not begin with how it was opened")
    elif kind == "closed":
        state.ended, state.status, state.reason = entry["time"], entry["status"], entry.get("reason", "")
    else:
        _apply(entry, state.rows, state.facts.mode)
    state.latest = entry["time"]
    return state


def read(path: Path) -> SweepState:
    """The sweep whose ledger is `path`. Raises ConfigError if it is missing or says nothing."""
    state: SweepState | None = None
    for entry in read_entries(path)[0] if path.exists() else ():
        state = heard(path.parent, state, entry)
    if state is None:
        raise ConfigError(f"there is no sweep at {path.parent}")
    return state


def _opened(folder: Path, entry: Mapping[str, Any], before: SweepState | None) -> SweepState:
    said = dict(entry["facts"])
    facts = SweepFacts(
        **{**said, **{name: tuple(said[name]) for name in ("space", "rungs", "objectives", "first") if name in said}}
    )
    if before is None:
        begun = entry["time"]
        return SweepState(
            name=entry["name"], folder=str(folder), facts=facts, rows=[], started=begun, opened=begun, latest=begun
        )
    before.seconds_before += before.latest - before.opened
    before.facts, before.opened, before.ended, before.status, before.reason = facts, entry["time"], None, "running", ""
    return before


def _apply(entry: Mapping[str, Any], rows: list[TrialRow], mode: str) -> None:
    number, kind = entry["trial"], entry["kind"]
    if kind == "suggested":
        assert number == len(rows), "trials are numbered in the order of their suggestion"
        rows.append(
            TrialRow(
                number=number,
                name=entry["name"],
                run_id=entry["run"],
                fields=dict(entry["fields"]),
                folder=entry["folder"],
                started=entry["time"],
                runs=[entry["run"]],
            )
        )
        return
    row = rows[number]
    if kind == "continued":
        row.run_id, row.folder, row.status, row.reason = entry["run"], entry["folder"], "running", ""
        row.fields, row.parent, row.ended = dict(entry["fields"]), entry.get("parent"), None
        row.runs += [entry["run"]] if entry["run"] not in row.runs else []
    elif kind == "started":
        row.total_steps = entry["total_steps"]
    elif kind == "result":
        _add(row, _point(entry), mode)
    elif kind == "ended":
        row.status, row.reason, row.ended = entry["status"], entry.get("reason", ""), entry["time"]


def _point(entry: Mapping[str, Any]) -> Point:
    known = {name: entry[name] for name in ("joules", "dollars") if entry.get(name) is not None}
    value = entry.get("value")
    return Point(
        value=math.nan if value is None else float(value),
        metrics=dict(entry["metrics"]),
        step=int(entry["step"]),
        samples=int(entry["samples"]),
        seconds=float(entry["seconds"]),
        worker_seconds=float(entry["worker_seconds"]),
        **known,
    )


def _add(row: TrialRow, point: Point, mode: str) -> None:
    # After a resume a run may evaluate again what it had evaluated before; the later word counts.
    row.curve = [*(p for p in row.curve if p.step < point.step), point]
    good = [p.value for p in row.curve if math.isfinite(p.value)]
    row.best = (min if mode == "min" else max)(good) if good else None
