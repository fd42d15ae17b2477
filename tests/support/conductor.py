"""A test that takes part in a live run: it waits for conditions and acts, in a thread beside `shoal.train`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from shoal.coordinator.status import MemberStatus, RunStatus
from shoal.launch.supervise import find
from tests.support.runs import Listener

DEADLINE_S = 120.0


class Conductor(Listener):
    """Once the run trains, does `act` with its coordinator, in a thread of its own."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        super().__init__()
        self._act, self.run_id = act, ""
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def started(self, info: Mapping[str, Any]) -> None:
        self.run_id = info["run_id"]

    def status(self, status: RunStatus) -> None:
        super().status(status)
        if self._thread is None and status.phase == "training":
            self._thread = threading.Thread(target=self._conduct, daemon=True)
            self._thread.start()

    def _conduct(self) -> None:
        try:
            self._act(find(self.run_id))
        except BaseException as error:  # noqa: BLE001 - shown by the test, in whose thread this is not
            self.error = error


def members(coordinator: Any) -> list[MemberStatus]:
    """Of the view that runs, in rank order."""
    return [m for m in ray.get(coordinator.members.remote()) if m.rank is not None]


def until(found: Callable[[], bool]) -> None:
    """Wait for a condition, not for ever."""
    deadline = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.05)
