"""The record of a sweep in MLflow: one parent run, made of the sweep's ledger; below it the trials, each with the
record of its own run.

It takes the road that all records take (`tracking.recorder`): the ledger comes first, one thread sends it, and a server
that is down is caught up with later.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from shoal.run_folder import RunFolder
from shoal.tracking.facts import environment_tags
from shoal.tracking.ledger import Entry, scan
from shoal.tracking.owner import owner
from shoal.tracking.points import ENOUGH, ERROR, REASON, STATUS, Parcel, Point, Progress
from shoal.tracking.recorder import Recorder, send_pending
from shoal.tracking.sender import RUN_TAG, Sender
from shoal.tracking.settings import RecordSettings, TrialOf, best_key
from shoal.tracking.subject import Subject
from shoal.tuning import report
from shoal.tuning.ledger import FILE, SWEEPS
from shoal.tuning.links import children_link
from shoal.tuning.recipe import BEST
from shoal.tuning.trials import SPENT, SweepFacts, SweepState, heard, read
from shoal.tuning.view import MAX_TAG, VIEW_TAG, view

FAILED = "failed_trials"
"""Tag with the errors of trials that failed."""
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
        return parcels(ledger.parent, scan(ledger), progress)

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


def parcels(folder: Path, scanned: Iterator[tuple[Entry, int]], progress: Progress) -> Iterator[Parcel]:
    """What is to be sent of a sweep's entries behind `progress.offset`; `scanned` begins with the first one of all.

    A point is made at each end of a trial; its step is the number of trials that are over then.
    """
    state, parcel = None, Parcel(progress=progress)
    for entry, end in scanned:
        state = heard(folder, state, entry)
        if end <= progress.offset:
            continue
        parcel.progress = dataclasses.replace(parcel.progress, offset=end)
        at, kind = round(entry["time"] * 1000), entry["kind"]
        if kind == "ended" and entry["status"] in _ENDS:
            over = sum(state.counts[status] for status in _ENDS)
            parcel.points += _points(state, over, at)
            parcel.progress = dataclasses.replace(parcel.progress, step=over)
            parcel.tags |= _tags(state)
        elif kind == "opened":
            parcel.status, parcel.time_ms = "RUNNING", at
        elif kind == "closed":
            parcel.status, parcel.time_ms = STATUS[entry["status"]], at
            parcel.tags |= {**_tags(state), REASON: str(entry.get("reason") or entry["status"])}
            parcel.tags |= {ERROR: parcel.tags[REASON]} if entry["status"] == "failed" else {}
        if parcel.status or len(parcel.points) >= ENOUGH:
            yield parcel
            parcel = Parcel(progress=parcel.progress)
    if parcel.progress.offset > progress.offset and (parcel.points or parcel.tags):
        yield parcel


def _points(state: SweepState, over: int, at: int) -> list[Point]:
    values: dict[str, float] = {}
    if (best := state.best) is not None and best.best is not None:
        values[best_key(state.facts.metric)] = best.best
    counts = state.counts
    values |= {f"trials/{name}": counts[status] for status, name in _ENDS.items()}
    values |= {f"cost/{name}": spent for name in SPENT if (spent := state.spent(name)) is not None}
    return [Point(name, float(value), at, over) for name, value in values.items()]


def _tags(state: SweepState) -> dict[str, str]:
    """Which trial is the best so far, with its fields; which ones failed, and why."""
    tags: dict[str, str] = {}
    if (best := state.best) is not None:
        said = ", ".join(f"{name}={value}" for name, value in best.fields.items())
        tags = {"best.trial": str(best.number), "best.run": best.run_id, "best.fields": said}
    failed = [f"{r.number}: {r.reason[:_LONGEST_ERROR]}" for r in state.rows if r.status == "failed"]
    return {**tags, FAILED: "\n".join(failed)} if failed else tags
