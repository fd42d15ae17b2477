"""All runs under one folder, for `shoal runs`: from their files alone, without MLflow and in milliseconds."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import Entry, of_kind, tail
from shoal.tracking.owner import is_alive

DIED = "died"
LIVE = ("starting", "running")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """How one run stands. None: not known, or not yet."""

    run_id: str
    name: str
    status: str
    """starting, running, finished, failed, stopped; `died`: `run.json` says running, but the process is gone."""
    step: int
    total_steps: int | None
    loss: float | None
    """Training loss of the last committed step."""
    best_val_loss: float | None
    workers: int | None
    started: float | None
    """Unix seconds."""
    duration_s: float | None
    """From its first start to its last entry, or to now while it runs."""
    unsent: bool
    """Part of the ledger is not in MLflow (yet): `shoal runs send` brings it there."""
    joules: float | None = None
    dollars: float | None = None
    """None: nobody said what a worker costs."""


def list_runs(root: Path) -> list[RunSummary]:
    """The runs in `root`, the newest first. A folder whose `run.json` cannot be read is not a run."""
    runs = [summarize(folder, value) for folder, value in _folders(root)]
    return sorted(runs, key=lambda r: (r.started or 0.0, r.run_id), reverse=True)


def newest_run(root: Path) -> RunFolder | None:
    """The run that was started last; None if there is none."""
    runs = list_runs(root)
    return RunFolder(Path(root) / runs[0].run_id) if runs else None


def died(root: Path) -> list[RunFolder]:
    """Runs whose `run.json` still says that they are running although the process that owned them is gone."""
    return [f for f, value in _folders(root) if value.get("status") in LIVE and has_died(f, value)]


def has_died(folder: RunFolder, value: dict[str, Any]) -> bool:
    """Whether the run with this `run.json` is neither ended nor alive."""
    return _status(value, tail(folder.ledger, 4096)) == DIED


def summarize(folder: RunFolder, value: dict[str, Any]) -> RunSummary:
    """One run, from its `run.json` (`value`), the last part of its ledger, and the evaluations in it."""
    last = tail(folder.ledger)
    commit = next((e for e in reversed(last) if e["kind"] == "commit"), {})
    newest = next((e for e in reversed(last) if e["kind"] in ("commit", "resume")), {})
    used: dict[str, float] = next((e["used"] for e in reversed(last) if e.get("used")), {})
    losses = [e["metrics"].get("val/loss") for e in of_kind(folder.ledger, "evaluation")]
    finite = [x for x in losses if x is not None and math.isfinite(x)]
    started = (
        value.get("started") or value.get("created") or next((e["time"] for e in of_kind(folder.ledger, "start")), None)
    )
    status = _status(value, last)
    ended = time.time() if status in LIVE else (last[-1]["time"] if last else None)
    return RunSummary(
        run_id=folder.run_id,
        name=str(value.get("name") or folder.run_id),
        status=status,
        step=int(newest.get("step", newest.get("from_step")) or 0),
        total_steps=value.get("total_steps"),
        loss=commit.get("loss"),
        best_val_loss=min(finite, default=None),
        workers=commit.get("workers"),
        started=started,
        duration_s=ended - started if started is not None and ended is not None else None,
        joules=used.get("joules"),
        dollars=used.get("dollars"),
        unsent=_unsent(folder),
    )


def _unsent(folder: RunFolder) -> bool:
    try:
        sent = json.loads(folder.record.read_text())["progress"]["offset"]
        return folder.ledger.stat().st_size > sent
    except (OSError, ValueError, KeyError):
        # Never recorded in MLflow, hence nothing to send.
        return False


def _status(value: dict[str, Any], last: list[Entry]) -> str:
    """The ledger's word on the end goes before `run.json`'s, which a crash may have left behind."""
    status = str(value.get("status") or "running")
    if last and last[-1]["kind"] == "end":
        return str(last[-1]["status"])
    if status in LIVE and not is_alive(value.get("owner")):
        return DIED
    return status


def _folders(root: Path) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
    for path in sorted(Path(root).glob("*/run.json")):
        folder = RunFolder(path.parent)
        try:
            yield folder, folder.read()
        except (OSError, ValueError, ConfigError):
            # Half-copied or foreign: listing the others matters more.
            continue
