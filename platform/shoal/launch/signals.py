"""Ctrl-C and SIGTERM as a count that the launcher looks at: once is a wish, twice is an order."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopRequests:
    """Counts SIGINT and SIGTERM while the context is open (in the main thread; elsewhere it counts nothing)."""

    def __init__(self) -> None:
        self.count = 0
        self.name = ""
        self.exit_code = 130
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
