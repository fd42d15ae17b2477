"""What is recorded: a training run, or whatever else has a folder, a ledger and a report. One road brings it to MLflow.

A subject says how its ledger becomes points, and which files belong to it; `Sender` and `Recorder` do the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from shoal.run_folder import RunFolder
from shoal.tracking.ledger import scan
from shoal.tracking.points import Parcel, Progress, parcels, unsent
from shoal.tracking.report import write_report
from shoal.tracking.settings import RecordSettings, TrialOf


class Subject(Protocol):
    """All that the record must know about what it records."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files and folders that are uploaded once, as soon as they are there: paths in the folder."""
        ...

    @property
    def last_files(self) -> tuple[str, ...]:
        """Those that are uploaded at the end."""
        ...

    @classmethod
    def of(cls, settings: RecordSettings) -> Subject:
        """The subject that `settings` are about."""
        ...

    def ledger(self, folder: RunFolder) -> Path: ...

    def parcels(self, ledger: Path, progress: Progress, before: float) -> Iterator[Parcel]:
        """What is to be sent of entries behind `progress` and older than `before` (whole Unix seconds)."""
        ...

    def unsent(self, ledger: Path, progress: Progress) -> int:
        """How many things worth counting are behind `progress`."""
        ...

    def write_report(self, folder: RunFolder) -> Path:
        """Write `report.html`. Raises OSError or ShoalError."""
        ...

    def note(self, folder: RunFolder, experiment: str, run: str) -> str:
        """The description in MLflow's UI, as Markdown: three lines, which is what it shows before "Show more"."""
        ...

    def experiment_tags(self, folder: RunFolder, run: str) -> dict[str, str]:
        """Tags of the whole experiment that belong to the MLflow run `run`."""
        ...


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A run of a job; a trial's, where it has a sweep."""

    trial: TrialOf | None = None
    files: ClassVar[tuple[str, ...]] = ("job.json", "recipe")
    last_files: ClassVar[tuple[str, ...]] = ("model/config.json",)

    @classmethod
    def of(cls, settings: RecordSettings) -> TrainingRun:
        return cls(settings.trial)

    def ledger(self, folder: RunFolder) -> Path:
        return folder.ledger

    def parcels(self, ledger: Path, progress: Progress, before: float) -> Iterator[Parcel]:
        return parcels(scan(ledger, progress.offset), progress, before=before, trial=self.trial)

    def unsent(self, ledger: Path, progress: Progress) -> int:
        return unsent(scan(ledger, progress.offset), progress)

    def write_report(self, folder: RunFolder) -> Path:
        return write_report(folder)

    def note(self, folder: RunFolder, experiment: str, run: str) -> str:
        report = f"#/experiments/{experiment}/runs/{run}/artifacts/report.html"
        return (
            f"[**Report**: curves, events and numbers on one page]({report})  \n"
            f"Go on from its last checkpoint: `shoal resume {folder.run_id}`  \n"
            f"Files: `{folder.path}`\n"
        )

    def experiment_tags(self, folder: RunFolder, run: str) -> dict[str, str]:
        return {}
