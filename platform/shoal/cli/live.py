"""Progress on a terminal: two lines that stay at the bottom, events scroll above them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoal.cli import text
from shoal.cli.display import introduction
from shoal.coordinator.status import Outcome, RunStatus

COLOURS = {
    "loss": "red",
    "hang": "red",
    "warning": "yellow",
    "stopping": "yellow",
    "evaluation": "green",
    "join": "cyan",
    "leave": "cyan",
}
STATUSES = {"finished": "bold green", "failed": "bold red", "stopped": "bold yellow"}


class LiveDisplay:
    """Draws when it is called, and only then: no thread of its own disturbs the run."""

    def __init__(self, stream: TextIO, *, width: int | None = None) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=False, width=width)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._begun = time.monotonic()

    def __enter__(self) -> LiveDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, info: Mapping[str, Any]) -> None:
        for line in introduction(info):
            name, _, value = line.strip().partition(" ")
            self._print(f"{name:>10}", value.strip(), "bold")

    def status(self, status: RunStatus) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._draw(status), refresh=True)

    def event(self, kind: str, text: str) -> None:
        self._print(f"{kind:>10}", text, COLOURS.get(kind, "dim"))

    def finished(self, outcome: Outcome) -> None:
        self._live.stop()
        first, *rest = text.closing(outcome, time.monotonic() - self._begun)
        self._console.print(Text(first, STATUSES[outcome.status]))
        for line in rest:
            self._console.print(Text(line))
        if outcome.error:
            self._console.print(Text(outcome.error, "red" if outcome.status == "failed" else "yellow"))

    def _print(self, name: str, value: str, style: str) -> None:
        self._console.print(Text.assemble((name, style), "  ", value))

    def _draw(self, status: RunStatus) -> Group:
        bar = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            bar.add_column(ratio=ratio, no_wrap=True)
        total = status.total_steps
        eta = f"{text.duration(status.eta_s)} left" if status.eta_s is not None else ""
        bar.add_row(
            Text(f"{status.phase:>10}", "bold cyan"),
            ProgressBar(total=total, completed=status.step, pulse=total is None),
            Text(text.steps(status).removeprefix("step ")),
            Text(eta, "dim"),
        )
        numbers = Text(" " * 12 + (status.message or text.numbers(status)), overflow="ellipsis", no_wrap=True)
        return Group(bar, numbers)
