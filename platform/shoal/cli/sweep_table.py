"""Progress of a sweep: a table that stays at the bottom of a terminal; elsewhere a line for each event."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from shoal.cli.live import COLOURS, STATUSES
from shoal.tuning import table
from shoal.tuning.trials import SweepState

STYLES = {
    "label": "bold",
    "best": "bold green",
    "soft": "dim",
    "bar": "cyan",
    "running": "cyan",
    "finished": "green",
    "stopped-early": "yellow",
    "failed": "red",
    "interrupted": "magenta",
    "started": "dim",
}
LOUD = ("failed", "best")
"""Events that are told above the table, which shows the others itself."""
_ROOM = 6
"""Lines of a terminal that are not for trials."""


class SweepTable:
    """Shows a sweep's states; draws when it is called, and only then. A context manager that leaves the screen clean.

    On a terminal: a table, drawn over, with failures and new bests above it. Elsewhere: one plain line for each event.
    `quiet`: only failures and the result.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        width: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._clock = clock
        self._last: SweepState | None = None
        self._live = self._console = None
        if self._stream.isatty() and not quiet:
            from rich.console import Console
            from rich.live import Live

            self._console = Console(file=self._stream, highlight=False, soft_wrap=False, width=width)
            self._live = Live(console=self._console, auto_refresh=False, transient=True)

    def __enter__(self) -> SweepTable:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._stream.flush()

    def update(self, state: SweepState) -> None:
        """Show `state`, and what happened since the one before it."""
        now = self._clock()
        for kind, text in table.events(self._last, state, now):
            if kind == "failed" or (not self._quiet and (self._live is None or kind in LOUD)):
                self.event(kind, text)
        self._last = state
        if self._live is not None and self._console is not None:
            from rich.text import Text

            rows = max(4, min(table.ROWS, self._console.height - _ROOM))
            drawn = table.lines(state, now, self._console.width, rows)
            if not self._live.is_started:
                self._live.start()
            styled = [Text.assemble(*((c.text, STYLES.get(c.style, "")) for c in line)) for line in drawn]
            self._live.update(Text("\n").join(styled), refresh=True)

    def event(self, kind: str, text: str) -> None:
        """Say that something happened: of the kinds of `table.Event`, or warning, stopping, info."""
        if self._console is not None:
            from rich.text import Text

            style = STYLES.get(kind) or COLOURS.get(kind, "dim")
            self._console.print(Text.assemble((f"{table.WORDS.get(kind, kind):>13}", style), "  ", text))
        else:
            self._write(f"{table.WORDS.get(kind, kind)}: {text}")

    def finished(self, state: SweepState, further: Sequence[tuple[str, str]] = ()) -> None:
        """The last word; `further` (name, value) say where things are: the best job, the report, the record."""
        if self._live is not None:
            self._live.stop()
        first, *rest = table.closing(state, further)
        if self._console is not None:
            # Not wrapped, so that links and commands can be copied whole.
            self._console.print(first, style=STATUSES.get(state.status, "bold"), markup=False, soft_wrap=True)
            for line in rest:
                self._console.print(line, markup=False, soft_wrap=True)
        else:
            for line in (first, *rest):
                self._write(line)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()
