"""What a run's ledger says of how far it has come, what it has used, and what its evaluations said. Pure but for
reading the file."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.tracking.ledger import read
from shoal.tuning.trials import Point

RECENT = 512
"""An evaluation is written at most this many commits after that of its step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """What has been used, steps that were done twice included."""

    seconds: float = 0.0
    worker_seconds: float = 0.0
    joules: float | None = None
    dollars: float | None = None


class Meter:
    """Reads the ledger of one run as it grows."""

    def __init__(self, path: Path, metric: str, *, before: Used | None = None, after: int = 0) -> None:
        """`before`: used by earlier runs of the same trial; `after`: evaluations up to this step are known already."""
        self.path, self.metric = path, metric
        self.step = 0
        self._before = self.used = before or Used()
        self._samples: deque[tuple[int, int]] = deque(maxlen=RECENT)
        self._offset = 0
        self._after = after

    def look(self) -> list[Point]:
        """The evaluations that have come since the last look."""
        entries, self._offset = read(self.path, self._offset)
        return self.add(entries)

    def add(self, entries: Iterable[Mapping[str, Any]]) -> list[Point]:
        """The evaluations among `entries`, the next ones of the ledger."""
        found: list[Point] = []
        for entry in entries:
            if entry["kind"] == "commit":
                self.step = int(entry["step"])
                self._samples.append((self.step, int(entry["samples"][1])))
                self.used = self._with(entry)
            elif entry["kind"] == "resume":
                self.step = int(entry["from_step"])
            elif entry["kind"] == "evaluation" and int(entry["step"]) > self._after:
                found.append(self._point(entry))
        return found

    def _with(self, commit: Mapping[str, Any]) -> Used:
        """What is used after one more step. What a commit says in `used` is the run's sum so far."""
        seconds, said = float(commit.get("step_s") or 0.0), commit.get("used") or {}
        before = self._before
        return Used(
            seconds=before.seconds + said["seconds"] if "seconds" in said else self.used.seconds + seconds,
            worker_seconds=self.used.worker_seconds + seconds * int(commit.get("workers") or 1),
            joules=_sum(before.joules, said.get("joules"), self.used.joules),
            dollars=_sum(before.dollars, said.get("dollars"), self.used.dollars),
        )

    def _point(self, entry: Mapping[str, Any]) -> Point:
        step, metrics = int(entry["step"]), {k: float(v) for k, v in entry["metrics"].items()}
        # Commits of later steps may stand before it; that of its own does not where a run was forked just there.
        samples = next((s for at, s in reversed(self._samples) if at <= step), 0)
        return Point(
            value=metrics.get(self.metric, math.nan),
            metrics=metrics,
            step=step,
            samples=samples,
            **dataclasses.asdict(self.used),
        )


def _sum(before: float | None, so_far: Any, known: float | None) -> float | None:
    return known if so_far is None else (before or 0.0) + float(so_far)
