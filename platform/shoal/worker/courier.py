"""The member's line to the coordinator: a thread that carries reports out and leases in, a few times a second.

The training loop never waits for a remote call: it leaves reports here and takes leases that came ahead of time.
Reports are kept until what they tell is committed, and said again to a coordinator that was restarted.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shoal.membership.leasing import BEAT_S, End
from shoal.membership.messages import (
    Entered,
    EvaluationReport,
    Grant,
    Progress,
    Reading,
    Reports,
    ShardWritten,
    SnapshotKept,
    StepReport,
    Told,
)
from shoal.membership.view import Lease, MemberId

RETRY_S = 0.1
"""Between two attempts to reach a coordinator that is being restarted."""

TOLD_SNAPSHOTS = 64
"""As many steps as can be leased ahead."""

Sync = Callable[[Reports], Grant]
"""One exchange with the coordinator; raises if it cannot be reached."""
Said = StepReport | EvaluationReport | ShardWritten | SnapshotKept


class Courier:
    """Carries reports and leases of one member in one view."""

    def __init__(
        self, member: MemberId, view: int, sync: Sync, *, patience_s: float = 60.0, beat_s: float = BEAT_S
    ) -> None:
        """`patience_s`: how long the coordinator may be out of reach. `beat_s`: between two words to it."""
        self.leases: queue.Queue[Lease | BaseException | None] = queue.Queue()
        """Leases in order; None after the last of the view; an exception if the coordinator cannot be reached."""
        self.end: End | None = None
        self.committed = 0
        self.progress: Callable[[], Progress] = Progress
        self.reading: Callable[[], Reading | None] = lambda: None
        """The worker's energy meter; read at every word to the coordinator."""
        self.leaving: Callable[[], str | None] = lambda: None
        """Why the worker's process is to end; None: it is not."""
        self.leave: Callable[[], None] = lambda: None
        """Called when the run has gone on without this view."""
        self.poll: Callable[[], list[Any]] = list
        """What other threads have finished since the last call: ShardWritten and SnapshotKept."""
        self._member, self._view, self._sync = member, view, sync
        self._patience_s, self._beat_s = patience_s, beat_s
        self._lock = threading.Lock()
        self._kept: list[Said] = []
        self._heard = 0  # how many of `_kept` the present coordinator has heard
        self._entered: Entered | None = None
        self._incarnation = 0
        self.told = Told()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shoal-courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def report(self, report: Said, *, urgent: bool = False) -> None:
        """Leave a report; it goes out with the next beat, or at once."""
        with self._lock:
            self._kept.append(report)
        if urgent:
            self._wake.set()

    def speak(self) -> None:
        """Let what is there go out at once."""
        self._wake.set()

    def entered(self, entered: Entered) -> None:
        """The view is formed and the state is there."""
        self._entered = entered
        self._wake.set()

    def close(self) -> Reports:
        """Stop, without waiting for the coordinator; returns everything that is not committed yet."""
        self._closing = True
        self._wake.set()
        with self._lock:
            self._kept.extend(self.poll())
            return self._reports(self._kept)

    def _run(self) -> None:
        reached = time.monotonic()
        while not self._closing:
            try:
                grant = self._sync(self._collect())
                if grant.over:
                    self.leave()
                    return
                self._receive(grant)
                reached = time.monotonic()
                self._wake.wait(self._beat_s)
                self._wake.clear()
            except Exception as error:  # noqa: BLE001 - whatever it is, the coordinator did not answer
                if time.monotonic() - reached > self._patience_s:
                    self.leases.put(error)  # the training loop is the one that can act
                    return
                self._heard = 0
                time.sleep(RETRY_S)

    def _collect(self) -> Reports:
        with self._lock:
            self._kept.extend(self.poll())
            said, self._heard = self._kept[self._heard :], len(self._kept)
        return self._reports(said)

    def _reports(self, said: list[Said]) -> Reports:
        return Reports(
            member=self._member,
            view=self._view,
            steps=tuple(r for r in said if isinstance(r, StepReport)),
            evaluations=tuple(r for r in said if isinstance(r, EvaluationReport)),
            written=tuple(r for r in said if isinstance(r, ShardWritten)),
            snapshots=tuple(r for r in said if isinstance(r, SnapshotKept)),
            progress=self.progress(),
            entered=self._entered,
            reading=self.reading(),
            leaving=self.leaving(),
        )

    def _receive(self, grant: Grant) -> None:
        with self._lock:
            if grant.incarnation != self._incarnation:
                self._incarnation, self._heard = grant.incarnation, 0
                self._wake.set()
            self._forget(grant.committed)
        for lease in grant.leases:
            if lease.step > self.told.until:  # a restarted coordinator may repeat itself
                snapshots = (*self.told.snapshots, lease.step) if lease.snapshot else self.told.snapshots
                progress = (*self.told.progress, (lease.step, lease.progress[1]))
                self.told = Told(lease.step, snapshots[-TOLD_SNAPSHOTS:], progress)
                self.leases.put(lease)
        if grant.end is not None and self.end is None:
            self.end = grant.end
            self.told = replace(self.told, end=grant.end)
            self.leases.put(None)

    def _forget(self, committed: int) -> None:
        """Drop what is committed. Evaluations and checkpoints are few, and are published a little after their step."""
        self.committed = max(self.committed, committed)
        heard, kept = 0, []
        for i, said in enumerate(self._kept):
            if said.step > committed or isinstance(said, (EvaluationReport, ShardWritten)):
                kept.append(said)
                heard += i < self._heard
        self._kept, self._heard = kept, heard
        self.told = replace(self.told, progress=tuple(p for p in self.told.progress if p[0] > committed))
