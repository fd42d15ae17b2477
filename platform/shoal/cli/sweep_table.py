"""Progress of a sweep: a table that stays at the bottom of a terminal; elsewhere a line for each event."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from shoal.cli.live import COLOURS, STATUSES
from shoal.job.recipe import shown
from shoal.tuning import table
from shoal.tuning.links import where_recorded
from shoal.tuning.recipe import BEST
from shoal.tuning.report import REPORT
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
        self._news = table.News()
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

    def opened(self, state: SweepState) -> None:
        """The sweep begins, or goes on."""
        facts, known = state.facts, sum(row.over for row in state.rows)
        said = f"{state.name}: {facts.trials} trials of {facts.job}, {facts.at_once} at once on {facts.workers} workers"
        rule = f", {facts.stop_early}" if facts.stop_early else ""
        goes_on = f"; {known} are over already" if known else ""
        if not self._quiet:
            self.event("sweep", f"{said}, {facts.search}{rule}{goes_on}")
        # What was told when it happened is not told again.
        list(self._news.of(state, self._clock()))

    def update(self, state: SweepState) -> None:
        """Show `state`, and what happened since the last time."""
        now = self._clock()
        for kind, text, more in self._news.of(state, now):
            if kind == "failed" or (not self._quiet and (self._live is None or kind in LOUD)):
                self.event(kind, f"{text} · {more}" if more and self._live is None else text)
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

    def closed(self, state: SweepState) -> None:
        """The last word: what came of it, and where things are."""
        self.update(state)
        if self._live is not None:
            self._live.stop()
        first, *rest = table.closing(state, places(state))
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


def places(state: SweepState) -> list[tuple[str, str]]:
    """(what, where) of a sweep that is over: its best job, its report, its record, and how to go on."""
    folder = Path(state.folder)
    found = [("best job", f"shoal train {shown(folder / BEST)}")] if (folder / BEST).exists() else []
    if (folder / REPORT).exists():
        found.append(("report", (folder / REPORT).absolute().as_uri()))
    found += [("record", where) for where in where_recorded(folder)]
    if state.status != "finished":
        found.append(("go on with", f"shoal sweep {state.facts.recipe} --resume {state.name}"))
    return found
