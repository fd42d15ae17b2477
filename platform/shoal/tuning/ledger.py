"""The ledger of a sweep, `<runs>/sweeps/<name>/sweep.jsonl`: one JSON object per line, only ever appended to.

It is what a resume, the display, the report and MLflow are made from (`trials.read`). Every entry has `kind` and
`time` (Unix seconds). The kinds and their other fields:

    opened      name, facts (the fields of `trials.SweepFacts`); once for each start, a resume too
    suggested   trial (number), name, run (id), folder, fields {dotted name: value}
    started     trial, total_steps: its run has begun, or goes on
    continued   trial, run, folder, fields, parent (trial): an interrupted trial goes on (the same run, unless it had no
                checkpoint), or a population's trial goes on from the checkpoint of another one with other fields
    result      trial, value (the metric; null: not finite), metrics {name: value}, step, samples, seconds,
                worker_seconds, joules, dollars (where the run accounts for them)
    ended       trial, status finished|stopped-early|failed|interrupted, reason
    closed      status finished|stopped|failed, reason, best (trial)
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.run_folder import check_name
from shoal.tracking.ledger import Ledger, is_written
from shoal.tuning.trials import Point, SweepFacts, SweepState, TrialStatus, Value, heard, read

FILE = "sweep.jsonl"
SWEEPS = "sweeps"


def sweep_folder(runs: Path, name: str) -> Path:
    """Where the sweep `name` keeps everything but its trials' runs, which lie in `runs` as all others do."""
    return runs.absolute() / SWEEPS / check_name(name, "--name")


class SweepLedger:
    """The writing end; one process at a time holds it. Its `state` is what the file says, after each word."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError if another process runs this sweep, or the file cannot be written."""
        self.folder = folder
        self.path = folder / FILE
        if is_written(self.path):
            raise ConfigError(
                f"sweep {folder.name} is being run by another process (it holds {self.path}); wait for its end, or "
                f"choose another --name"
            )
        self._ledger = Ledger(self.path, wait_s=0.0)
        self._state = read(self.path) if self.path.stat().st_size else None

    @property
    def is_new(self) -> bool:
        return self._state is None

    @property
    def state(self) -> SweepState:
        """The sweep as the file tells it: one value, which changes with every word."""
        assert self._state is not None, "a sweep is opened first"
        return self._state

    def opened(self, name: str, facts: SweepFacts) -> None:
        self._write("opened", name=name, facts=dataclasses.asdict(facts))

    def suggested(self, trial: int, *, name: str, run: str, folder: str, fields: Mapping[str, Value]) -> None:
        self._write("suggested", trial=trial, name=name, run=run, folder=folder, fields=dict(fields))

    def continued(
        self, trial: int, *, run: str, folder: str, fields: Mapping[str, Value], parent: int | None = None
    ) -> None:
        self._write("continued", trial=trial, run=run, folder=folder, fields=dict(fields), parent=parent)

    def started(self, trial: int, total_steps: int) -> None:
        self._write("started", trial=trial, total_steps=total_steps)

    def result(self, trial: int, point: Point) -> None:
        said = {k: v for k, v in dataclasses.asdict(point).items() if v is not None}
        self._write("result", trial=trial, **{**said, "value": point.value if math.isfinite(point.value) else None})

    def ended(self, trial: int, status: TrialStatus, reason: str = "") -> None:
        self._write("ended", trial=trial, status=status, reason=reason)

    def closed(self, status: str, reason: str = "", best: int | None = None) -> None:
        self._write("closed", status=status, reason=reason, best=best)

    def close(self) -> None:
        """Write what is left and give the file free."""
        self._ledger.close()

    def _write(self, kind: str, **values: Any) -> None:
        entry = {"kind": kind, "time": round(time.time(), 3), **values}
        self._ledger.append([entry])
        self._state = heard(self.folder, self._state, entry)
