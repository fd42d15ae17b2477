"""Closes the records of runs whose process died without a word, so that none shows as running for ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from shoal.run_folder import RunFolder
from shoal.tracking.runs import DIED, died, has_died
from shoal.tracking.sender import Sender, read_record
from shoal.tracking.settings import RecordSettings
from shoal.tracking.subject import Subject, TrainingRun

log = logging.getLogger(__name__)


def reap(
    root: Path, *, only: str | None = None, subject: Callable[[RecordSettings], Subject] = TrainingRun.of
) -> list[str]:
    """Set runs under `root` that died to KILLED in MLflow, and to `died` in `run.json`. Returns their ids.

    What such a run had not sent yet is sent first. `only` limits this to runs on that tracking URI. A run whose MLflow
    does not answer stays as it is, for the next time. Costs nothing, not even the import of MLflow, if no run died.
    """
    done = []
    for folder in died(root):
        try:
            if _close(folder, only, subject):
                done.append(folder.run_id)
        except Exception as error:  # noqa: BLE001
            # Whatever its MLflow raises: another run's record must not stop anybody, and there is a next time.
            log.warning("cannot close the record of %s, which died: %s", folder.run_id, error)
    return done


def _close(folder: RunFolder, only: str | None, subject: Callable[[RecordSettings], Subject]) -> bool:
    noted = read_record(folder)
    if only is not None and noted.get("uri") != only:
        return False
    if noted:
        settings = RecordSettings.from_json(noted["settings"])
        sender = Sender(folder, settings, subject(settings))
        try:
            sender.connect()
            sender.send()
            # It may have been started again in the meantime.
            if not has_died(folder, folder.read()):
                return False
            sender.terminate("KILLED", "its coordinator's process died", round(_last_sign(sender.ledger) * 1000))
        finally:
            sender.close()
    folder.update(status=DIED)
    return True


def _last_sign(ledger: Path) -> float:
    """When the run was last heard of (Unix seconds)."""
    try:
        return ledger.stat().st_mtime
    except FileNotFoundError:
        return time.time()
