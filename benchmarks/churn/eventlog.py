"""The common form of all logs: one JSON object a line, written by whoever sees it happen. `figures` has the kinds."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends to a file of this process's own in the run's folder."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / f"log-{os.getpid()}.jsonl").open("a", buffering=1)

    def __call__(self, kind: str, *, t: float | None = None, **fields: Any) -> None:
        """Write down that something happens; now, unless `t` says when."""
        self._file.write(json.dumps({"t": time.time() if t is None else t, "kind": kind, **fields}) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The events of all processes in order of time. A line that a kill cut short is left out."""
    events = []
    for path in folder.glob("log-*.jsonl"):
        for line in path.read_text().splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
    return sorted(events, key=lambda e: e["t"])
