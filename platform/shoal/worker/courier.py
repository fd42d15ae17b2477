"""The member's line to the coordinator: a thread that carries reports out and leases in, a few times a second.

The training loop never waits for a remote call: it leaves reports here and takes leases that came ahead of time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.membership.leasing import End
from shoal.membership.messages import EvaluationReport, Grant, Reports, ShardWritten, StepReport
from shoal.membership.view import Lease, MemberId

BEAT_S = 0.25
"""Between two words to the coordinator. Short against a human's patience, long against the cost of a remote call."""

Sync = Callable[[Reports], Grant]
"""One exchange with the coordinator; raises if the coordinator is gone."""


@dataclass(slots=True)
class _Outbox:
    steps: list[StepReport] = field(default_factory=list)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    written: list[ShardWritten] = field(default_factory=list)


class Courier:
    """Carries reports and leases of one member in one view."""

    def __init__(self, member: MemberId, view: int, sync: Sync, written: Callable[[], list[ShardWritten]]) -> None:
        self.leases: queue.Queue[Lease | BaseException | None] = queue.Queue()
        """Leases in order; None after the last of the view; an exception if the coordinator cannot be reached."""
        self.end: End | None = None
        self._member, self._view = member, view
        self._sync, self._poll_written = sync, written
        self._lock = threading.Lock()
        self._outbox = _Outbox()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="shoal-courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def report(self, report: StepReport | EvaluationReport) -> None:
        """Leave a report; it goes out with the next beat."""
        with self._lock:
            if isinstance(report, StepReport):
                self._outbox.steps.append(report)
            else:
                self._outbox.evaluations.append(report)

    def close(self) -> None:
        """Send what is left and stop. Returns when the coordinator has heard everything, or cannot be reached."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            last = self._closing  # read before the exchange: whatever was left before close() is in it
            try:
                self._receive(self._sync(self._collect()))
            except Exception as error:  # noqa: BLE001 - handed to the training loop, which is the one that can act
                self.leases.put(error)
                return
            if not last:
                self._wake.wait(BEAT_S)
                self._wake.clear()

    def _collect(self) -> Reports:
        written = self._poll_written()
        with self._lock:
            out, self._outbox = self._outbox, _Outbox()
        return Reports(
            member=self._member,
            view=self._view,
            steps=tuple(out.steps),
            evaluations=tuple(out.evaluations),
            written=tuple(out.written + written),
        )

    def _receive(self, grant: Grant) -> None:
        for lease in grant.leases:
            self.leases.put(lease)
        if grant.end is not None and self.end is None:
            self.end = grant.end
            self.leases.put(None)
