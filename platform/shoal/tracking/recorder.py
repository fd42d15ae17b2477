"""The one writer to MLflow: a thread beside the coordinator that follows the ledger.

Training never waits for it. While MLflow is slow or down the ledger keeps everything, and the thread catches up when
MLflow is back; what is unsent when the run ends is sent by `send_pending`, whenever that is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from shoal.errors import ConfigError, ShoalError
from shoal.redaction import redact
from shoal.run_folder import RunFolder
from shoal.tracking.reaper import reap
from shoal.tracking.sender import Sender, read_record
from shoal.tracking.settings import RecordSettings
from shoal.tracking.subject import Subject, TrainingRun

log = logging.getLogger(__name__)

SEND_EVERY_S = 3.0
REPORT_EVERY_S = 30.0
LONGEST_BACKOFF_S = 30.0
_REPORT_SHARE = 50
"""A report is due after this many times the seconds that the last one took: long runs spend 2 % on it at most."""


class Recorder:
    """Follows the ledger of a run (or of another `subject`) into MLflow, from `start` to `close`. Starting and closing
    take no time.

    The folder remembers how far it came: a new recorder of the same folder continues the same MLflow run, and sends no
    step twice. Once, it also closes the records of runs beside it that died.
    """

    def __init__(self, folder: RunFolder, settings: RecordSettings, subject: Subject | None = None) -> None:
        self.folder = folder
        self.settings = settings
        self.problem: str | None = None
        """Why MLflow does not take the record at the moment; None when all is well."""
        self._sender = Sender(folder, settings, subject)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"record-{folder.run_id}", daemon=True)
        self._deadline = float("inf")
        self._report_due = time.monotonic() + REPORT_EVERY_S
        self._report_is_new = False
        self._reaped = False

    @property
    def sent_step(self) -> int:
        """The last step that is in MLflow."""
        return self._sender.progress.step

    def start(self) -> None:
        self._thread.start()

    def close(self, deadline_s: float = 10.0) -> int:
        """Send what is left and end. Returns how many steps, evaluations and changes of status remain unsent.

        Takes at most about `deadline_s` seconds, and much less if MLflow was known to be down before.
        """
        self._deadline = time.monotonic() + deadline_s
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(deadline_s)
        return self._sender.unsent()

    def _follow(self) -> None:
        backoff_s = 1.0
        while True:
            stopping = self._stop.is_set()
            was_down = self.problem is not None
            self._write_report(stopping)
            try:
                self._once(stopping)
                if self.problem:
                    log.warning("MLflow at %s answers again", redact(self.settings.tracking_uri))
                self.problem, backoff_s, wait_s = None, 1.0, SEND_EVERY_S
            except Exception as error:  # noqa: BLE001
                # Whatever MLflow, its database driver or the network raise: the training must not notice, and the
                # ledger has everything for the next attempt, which connects anew.
                self._sender.close()
                self._complain(error)
                wait_s, backoff_s = backoff_s, min(2 * backoff_s, LONGEST_BACKOFF_S)
            if stopping and (self.problem is None or was_down or time.monotonic() + wait_s > self._deadline):
                self._sender.close()
                return
            if stopping:
                time.sleep(min(wait_s, 1.0))
            else:
                self._stop.wait(wait_s)

    def _once(self, last: bool) -> None:
        if not self._sender.connected:
            self._sender.connect(live=True)
        # The commits of the current second are left for the next round, until there is no next round.
        before = float("inf") if last else float(int(time.time()))
        self._sender.send(before=before, stop=lambda: time.monotonic() > self._deadline)
        subject = self._sender.subject
        for name in subject.files:
            self._sender.upload(self.folder.path / name)
        if not self._reaped:
            self._reaped = True
            reap(self.folder.root, only=self.settings.tracking_uri, subject=type(subject).of)
        if self._report_is_new:
            self._sender.upload(self.folder.report, once=False)
            self._report_is_new = False
        if last:
            for name in subject.last_files:
                self._sender.upload(self.folder.path / name, once=False)

    def _write_report(self, last: bool) -> None:
        """Renew `report.html` if it is due. It needs no MLflow, so that it is written while that is down, too."""
        began = time.monotonic()
        if not last and began < self._report_due:
            return
        try:
            self._sender.subject.write_report(self.folder)
            self._report_is_new = True
        except (OSError, ShoalError) as error:
            # A full disk, or a damaged ledger: the report can be made at any later time.
            log.warning("cannot write the report %s: %s", self.folder.report, error)
        took = time.monotonic() - began
        self._report_due = time.monotonic() + max(REPORT_EVERY_S, _REPORT_SHARE * took)

    def _complain(self, error: Exception) -> None:
        said = str(error).strip() or type(error).__name__
        if self.problem is None:
            log.warning(
                "MLflow at %s does not take the record (%s); the run goes on, and its points wait in %s until it does",
                redact(self.settings.tracking_uri),
                said.splitlines()[0][:200],
                self._sender.ledger,
            )
        self.problem = said


def send_pending(folder: RunFolder, subject: Callable[[RecordSettings], Subject] = TrainingRun.of) -> int:
    """Send what MLflow has not got of a run that has ended. Returns how many steps, evaluations and changes that was.

    Raises ConfigError if the folder holds no recorded run or is being recorded now, ShoalError if MLflow does not
    answer; what was sent until then stays sent.
    """
    folder.read()
    noted = read_record(folder)
    if not noted:
        raise ConfigError(f"run {folder.run_id} has no record.json, so nobody asked for it to be recorded in MLflow")
    settings = RecordSettings.from_json(noted["settings"])
    sender = Sender(folder, settings, subject(settings))
    try:
        sender.connect()
        waiting = sender.unsent()
        sender.send()
        for name in sender.subject.files:
            sender.upload(folder.path / name)
        sender.upload(sender.subject.write_report(folder), once=False)
        for name in sender.subject.last_files:
            sender.upload(folder.path / name, once=False)
    except ShoalError:
        raise
    except Exception as error:
        # MLflow, its database driver and the network have no common error; for the user it is one and the same thing.
        raise ShoalError(
            f"MLflow at {redact(settings.tracking_uri)} does not take the record of {folder.run_id}: "
            f"{redact(str(error))}; start or repair that server, then send again. "
            f"{sender.unsent()} entries wait in {sender.ledger}"
        ) from error
    finally:
        sender.close()
    return waiting
