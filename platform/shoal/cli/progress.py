"""Progress of work that is not a run of its own, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from shoal.coordinator.status import Display, Outcome, RunStatus

LIVE_S, PLAIN_S = 0.1, 5.0


class ProgressLine:
    """One line: written over on a terminal, said again every few seconds elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._said_at = time.monotonic() - (LIVE_S if self._live else 0.0)
        self._width = 0

    def say(self, line: str, *, last: bool = False) -> None:
        """Show `line`, unless the one before it was shown just now; the `last` one always."""
        now = time.monotonic()
        if not last and now - self._said_at < (LIVE_S if self._live else PLAIN_S):
            return
        self._said_at = now
        if self._live:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def keep(self) -> None:
        """Leave the line where it is."""
        if self._width:
            self._stream.write("\n")
            self._width = 0

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0


class OnlyProgress:
    """Passes on how a run goes, but neither its introduction nor its outcome: for a run that serves another purpose."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def started(self, info: Mapping[str, Any]) -> None:
        """Nobody needs to know where it lies."""

    def status(self, status: RunStatus) -> None:
        self._display.status(status)

    def event(self, kind: str, text: str) -> None:
        if kind not in ("checkpoint", "stopping"):
            self._display.event(kind, text)

    def finished(self, outcome: Outcome) -> None:
        """What is said about it is said by whoever started it."""
