"""SIGTERM to a worker's process: it announces its leave and stays until nobody needs it, instead of dying in a step.

Ray's own handler raises SystemExit in whatever the main thread computes, which is a loss for the run. Python runs
handlers in the main thread alone, and that may be in one operation for seconds; so a thread reads the signal's number
from the descriptor to which the interpreter writes it at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)

EXIT_CODE = 128 + signal.SIGTERM


class Termination:
    """Whether this process was told to end. Make it on the main thread."""

    def __init__(self, needed: Callable[[], bool]) -> None:
        """`needed`: whether a run counts on this process, and so will end it; if not, it ends at once. A second SIGTERM
        ends it in any case."""
        self.asked: str | None = None
        """Why this process is to end; None: nobody has told it to."""
        self._needed = needed
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), name="shoal-termination", daemon=True).start()

    def _listen(self, read: int) -> None:
        while number := os.read(read, 1):
            if number[0] != signal.SIGTERM:
                continue
            if self.asked is not None or not self._needed():
                os._exit(EXIT_CODE)
            self.asked = f"process {os.getpid()} was told to end (SIGTERM)"
            _log.warning("%s; it leaves at the next boundary", self.asked)
