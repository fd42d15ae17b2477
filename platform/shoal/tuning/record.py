"""The record of a sweep in MLflow: one parent run, made of the sweep's ledger; below it the trials, each with the
record of its own run.

It takes the road that all records take (`tracking.recorder`): the ledger comes first, one thread sends it, and a server
that is down is caught up with later.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from shoal.run_folder import RunFolder
from shoal.tracking.facts import environment_tags
from shoal.tracking.ledger import Entry, scan
from shoal.tracking.owner import owner
from shoal.tracking.points import ENOUGH, ERROR, REASON, STATUS, Parcel, Point, Progress
from shoal.tracking.recorder import Recorder, send_pending
from shoal.tracking.sender import RUN_TAG, Sender
from shoal.tracking.settings import RecordSettings, TrialOf, best_key, better
from shoal.tracking.subject import Subject
from shoal.tuning import report
from shoal.tuning.ledger import FILE, SWEEPS
from shoal.tuning.links import children_link
from shoal.tuning.recipe import BEST
from shoal.tuning.trials import SweepFacts, read
from shoal.tuning.view import MAX_TAG, VIEW_TAG, view

FAILED = "failed_trials"
"""Tag with the errors of trials that failed."""
_COSTS = ("worker_seconds", "seconds", "joules", "dollars")
_ENDS = {"finished": "finished", "stopped-early": "stopped_early", "failed": "failed"}
_LONGEST_ERROR = 400


class SweepRecord:
    """Follows a sweep's ledger into MLflow, from `start` to `close`; neither takes long, whatever MLflow does.

    A record of the same folder, opened later, continues the same MLflow run.
    """

    def __init__(self, folder: Path, facts: SweepFacts, *, tracking_uri: str = "") -> None:
        """Raises ConfigError for a tracking URI that cannot hold a record. The settings are in the folder at once, so
        that trials find their parent also where MLflow has not got it yet."""
        self.folder = RunFolder(folder)
        self._facts = facts
        said = self.folder.update(name=folder.name, kind="sweep", status="running", owner=owner())
        # Another sweep on the same server may have the same name.
        identity = said.get("identity") or f"{folder.name}-{time.time_ns():x}"
        self.folder.update(identity=identity)
        settings = settings_of(folder, facts, tracking_uri=tracking_uri, identity=identity)
        Sender(self.folder, settings, SweepSubject.of(settings)).keep_settings()
        self._recorder = Recorder(self.folder, settings, SweepSubject.of(settings))

    @property
    def problem(self) -> str | None:
        """Why MLflow does not take the record at the moment; None when all is well."""
        return self._recorder.problem

    def start(self) -> None:
        self._recorder.start()

    def trial(self, number: int) -> TrialOf:
        """What the run of trial `number` has to know (`RunOptions.trial`)."""
        facts = self._facts
        return TrialOf(
            sweep=self.folder.path, number=number, metric=facts.metric, mode=facts.mode, experiment=facts.job
        )

    def close(self, status: str, deadline_s: float = 60.0) -> int:
        """Send what is left, write the report. Returns how many entries remain unsent (`send` brings them later).

        `status` is that of the ledger's last word. Takes at most about `deadline_s` seconds.
        """
        self.folder.update(status=status)
        return self._recorder.close(deadline_s)


def settings_of(folder: Path, facts: SweepFacts, *, tracking_uri: str, identity: str) -> RecordSettings:
    """Where the sweep in `folder` is recorded, and what is said about it as a whole."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    tags = environment_tags(Path.cwd(), command=command, engine="")
    tags.pop("shoal.engine")
    params = {
        **{name: getattr(facts, name) for name in ("metric", "mode", "search", "stop_early", "resource", "trials")},
        **{name: getattr(facts, name) for name in ("at_once", "workers", "recipe")},
        "objectives": ", ".join(facts.objectives),
        **{f"budget.{unit}": f"{value:g}" for unit, value in facts.budget.items()},
        **{f"space.{name}": text for name, text in report.space_in_words(facts).items()},
    }
    return RecordSettings(
        runs=folder.parent.parent,
        experiment=facts.job,
        run_name=folder.name,
        tracking_uri=tracking_uri,
        params={name: str(value) for name, value in params.items() if value not in (None, "")},
        tags={**tags, RUN_TAG: identity, "shoal.sweep": folder.name},
    )


def is_sweep(folder: Path) -> bool:
    return (folder / FILE).exists()


def find_sweep(runs: Path, name: str) -> Path | None:
    """The folder of a sweep, given its name or its path; None if there is none."""
    for path in (runs.absolute() / SWEEPS / name, Path(name).absolute()):
        if is_sweep(path):
            return path
    return None


def send_sweep(folder: Path) -> Iterator[tuple[str, int]]:
    """Send what MLflow has not got of the sweep in `folder`, then of its trials: (name, how many entries) of each.

    Trials that were never recorded are passed over. Raises as `tracking.recorder.send_pending` does.
    """
    yield folder.name, send_pending(RunFolder(folder), SweepSubject.of)
    for row in read(folder / FILE).rows:
        for run in row.runs:
            place = RunFolder(Path(row.folder).with_name(run))
            if place.record.exists():
                yield run, send_pending(place)


@dataclass(frozen=True, slots=True)
class SweepSubject:
    """A sweep, as the record sees it."""

    files: ClassVar[tuple[str, ...]] = ()
    last_files: ClassVar[tuple[str, ...]] = (BEST, report.SUMMARY)

    @classmethod
    def of(cls, settings: RecordSettings) -> Subject:
        return cls()

    def ledger(self, folder: RunFolder) -> Path:
        return folder.path / FILE

    def parcels(self, ledger: Path, progress: Progress, before: float) -> Iterator[Parcel]:
        # From the beginning, because what an entry comes to depends on those before it; a sweep's ledger is short.
        return parcels(scan(ledger), progress)

    def unsent(self, ledger: Path, progress: Progress) -> int:
        return sum(e["kind"] in ("opened", "ended", "closed") for e, _ in scan(ledger, progress.offset))

    def write_report(self, folder: RunFolder) -> Path:
        return report.write_report(folder.path, self.ledger(folder))

    def note(self, folder: RunFolder, experiment: str, run: str) -> str:
        page = f"#/experiments/{experiment}/runs/{run}/artifacts/{report.REPORT}"
        facts = read(self.ledger(folder)).facts
        charts = children_link("", experiment, run, metric=facts.metric, mode=facts.mode).removeprefix("/")
        return (
            f"[**Report**: what was tried, and what came of it, on one page]({page})  \n"
            f"[The trials as charts]({charts}), without their parent  \n"
            f"Files: `{folder.path}`\n"
        )

    def experiment_tags(self, folder: RunFolder, run: str) -> dict[str, str]:
        made = view(read(self.ledger(folder)).facts, run)
        return {VIEW_TAG + run: made} if len(made) <= MAX_TAG else {}


def parcels(scanned: Iterator[tuple[Entry, int]], progress: Progress) -> Iterator[Parcel]:
    """What is to be sent of a sweep's entries behind `progress.offset`; `scanned` begins with the first one of all.

    A point is made at each end of a trial; its step is the number of trials that are over then.
    """
    tally, parcel = _Tally(), Parcel(progress=progress)
    for entry, end in scanned:
        over = tally.add(entry)
        if end <= progress.offset:
            continue
        parcel.progress = dataclasses.replace(parcel.progress, offset=end)
        at = round(entry["time"] * 1000)
        if over:
            parcel.points += tally.points(at)
            parcel.progress = dataclasses.replace(parcel.progress, step=tally.over)
            parcel.tags |= tally.tags()
        if entry["kind"] in ("opened", "closed"):
            closed = entry["kind"] == "closed"
            parcel.status, parcel.time_ms = (STATUS[entry["status"]] if closed else "RUNNING"), at
            if closed:
                parcel.tags |= {**tally.tags(), REASON: str(entry.get("reason") or entry["status"])}
                parcel.tags |= {ERROR: parcel.tags[REASON]} if entry["status"] == "failed" else {}
        if parcel.status or len(parcel.points) >= ENOUGH:
            yield parcel
            parcel = Parcel(progress=parcel.progress)
    if parcel.progress.offset > progress.offset and (parcel.points or parcel.tags):
        yield parcel


@dataclass(slots=True)
class _Tally:
    """What the entries so far come to."""

    metric: str = ""
    mode: str = "min"
    over: int = 0
    trials: dict[int, _Trial] = field(default_factory=dict)

    def add(self, entry: Entry) -> bool:
        """Take `entry` in; whether it ends a trial for good."""
        kind = entry["kind"]
        if kind == "opened":
            self.metric, self.mode = entry["facts"]["metric"], entry["facts"]["mode"]
        elif kind in ("suggested", "continued"):
            trial = self.trials.setdefault(entry["trial"], _Trial())
            trial.fields, trial.run, trial.status = entry["fields"], str(entry["run"]), "running"
        elif kind == "result":
            self.trials[entry["trial"]].add(entry, self.mode)
        elif kind == "ended":
            trial = self.trials[entry["trial"]]
            trial.status, trial.reason = entry["status"], str(entry.get("reason") or "")
            if entry["status"] in _ENDS:
                self.over += 1
                return True
        return False

    def best(self) -> tuple[int, _Trial] | None:
        able = [(n, t) for n, t in self.trials.items() if t.best is not None and t.status != "failed"]
        sign = 1.0 if self.mode == "min" else -1.0
        return min(able, key=lambda it: (sign * (it[1].best or 0.0), it[0]), default=None)

    def points(self, at: int) -> list[Point]:
        values: dict[str, float] = {}
        if (best := self.best()) is not None and best[1].best is not None:
            values[best_key(self.metric)] = best[1].best
        for status, name in _ENDS.items():
            values[f"trials/{name}"] = sum(t.status == status for t in self.trials.values())
        for name in _COSTS:
            known = [t.costs[name] for t in self.trials.values() if name in t.costs]
            if known:
                values[f"cost/{name}"] = sum(known)
        return [Point(name, float(value), at, self.over) for name, value in values.items()]

    def tags(self) -> dict[str, str]:
        """Which trial is the best so far, with its fields; which ones failed, and why."""
        tags: dict[str, str] = {}
        if (best := self.best()) is not None:
            number, trial = best
            said = ", ".join(f"{name}={value}" for name, value in trial.fields.items())
            tags = {"best.trial": str(number), "best.run": trial.run, "best.fields": said}
        failed = [f"{n}: {t.reason[:_LONGEST_ERROR]}" for n, t in sorted(self.trials.items()) if t.status == "failed"]
        return {**tags, FAILED: "\n".join(failed)} if failed else tags


@dataclass(slots=True)
class _Trial:
    fields: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    status: str = "running"
    reason: str = ""
    best: float | None = None
    costs: dict[str, float] = field(default_factory=dict)

    def add(self, entry: Entry, mode: str) -> None:
        value = entry.get("value")
        if value is not None and math.isfinite(value) and better(value, self.best, mode):
            self.best = float(value)
        self.costs |= {name: float(entry[name]) for name in _COSTS if entry.get(name) is not None}
