"""A run's ledger as columns: what its report draws. Reads ledgers of any length in one pass and little memory."""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shoal.tracking.ledger import Entry

PARTS = ("data_wait_s", "compute_s", "communicate_s", "update_s")
SIZES = ("batch", "noise_scale", "critical_batch")
COLUMNS = (
    *("step", "time", "loss", "lr", "grad_norm", "workers", "samples_per_s", "tokens_per_s", "step_s"),
    *PARTS,
    *SIZES,
)
SMOOTHING_STEPS = 50
"""Width of the smoothing of the loss curve; a thirtieth of the run where that is less."""


@dataclass(slots=True)
class History:
    """The effective history of a run: rolled-back steps are gone, events are not."""

    commits: dict[str, array[float]] = field(default_factory=lambda: {c: array("d") for c in COLUMNS})
    """Columns of equal length, ordered by step; NaN where a value was not recorded."""
    evaluations: list[Entry] = field(default_factory=list)
    checkpoints: list[Entry] = field(default_factory=list)
    departures: list[Entry] = field(default_factory=list)
    """Workers that left, with what they had used."""
    events: list[Entry] = field(default_factory=list)
    """Starts, views, losses, changes, resumes, ends, in order."""
    cost: Entry = field(default_factory=dict)
    """The last word of the account of energy and money; empty: there is none."""
    epoch: float | None = None
    rolled_back: int = 0
    """Steps that were committed, rolled back and done again."""
    redone_by_view: dict[int, int] = field(default_factory=dict)
    """view -> steps done again at its beginning, those that were not yet committed too."""

    def add(self, entries: Iterable[Entry]) -> History:
        for entry in entries:
            kind = entry["kind"]
            if kind == "commit":
                self._commit(entry)
            elif kind == "evaluation":
                self.evaluations.append(entry)
            elif kind == "checkpoint":
                self.checkpoints.append(entry)
            elif kind == "cost":
                self.cost = entry
            elif kind == "course":
                pass  # commits have it
            elif kind == "worker":
                self.departures.append(entry)
            else:
                if kind == "resume":
                    self._roll_back(entry["from_step"])
                elif kind == "change":
                    self.redone_by_view[entry["view"]] = int(entry.get("steps_redone") or 0)
                self.events.append(entry)
        return self

    @property
    def redone(self) -> int:
        """Steps that were done twice. A change of the view tells of those that were rolled back with it, too."""
        return max(self.rolled_back, sum(self.redone_by_view.values()))

    def _commit(self, entry: Entry) -> None:
        for name, column in self.commits.items():
            value = entry.get(name)
            column.append(math.nan if value is None else value)
        self.epoch = entry.get("epoch", self.epoch)

    def _roll_back(self, step: int) -> None:
        keep = bisect_right(self.commits["step"], step)
        self.rolled_back += len(self.commits["step"]) - keep
        for column in self.commits.values():
            del column[keep:]
        self.evaluations = [e for e in self.evaluations if e["step"] <= step]


def smooth(values: array[float], span: float) -> array[float]:
    """`values` smoothed without delay: a mean with a memory of `span` values, once forwards and once backwards."""
    forwards = _running_mean(values, span / 2)
    return array("d", reversed(_running_mean(reversed(forwards), span / 2)))


def _running_mean(values: Iterable[float], span: float) -> array[float]:
    """Exponential mean, unbiased at its start; values that are not finite are passed over."""
    keep, total, weight, out = math.exp(-1.0 / max(span, 1e-9)), 0.0, 0.0, array("d")
    for value in values:
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1.0
        out.append(total / weight if weight else math.nan)
    return out


def thin(columns: dict[str, array[float]], most: int) -> list[dict[str, Any]]:
    """Means of each column over at most `most` equal ranges of rows; `low` and `high` bound the loss in each range.

    `step`, `time`, `workers` and `batch` are those of the last row of a range.
    """
    rows = len(columns["step"])
    parts = min(rows, most)
    edges = [rows * i // parts for i in range(parts + 1)] if parts else [0]
    out = []
    for a, b in itertools.pairwise(edges):
        row: dict[str, Any] = {name: _mean(column[a:b]) for name, column in columns.items()}
        row |= {name: columns[name][b - 1] for name in ("step", "time", "workers", "batch")}
        finite = [x for x in columns["loss"][a:b] if math.isfinite(x)]
        row |= {"low": min(finite, default=math.nan), "high": max(finite, default=math.nan)}
        out.append(row)
    return out


def _mean(values: array[float]) -> float:
    finite = [x for x in values if math.isfinite(x)]
    return sum(finite) / len(finite) if finite else math.nan


def recent_rate(history: History, name: str) -> float | None:
    """Time-weighted mean of a rate over the last half of the run: without the warm-up of caches and workers."""
    column, times = history.commits[name], history.commits["step_s"]
    pairs = [(r, s) for r, s in zip(column, times, strict=True) if math.isfinite(r) and math.isfinite(s) and s > 0]
    pairs = pairs[len(pairs) // 2 :]
    seconds = sum(s for _, s in pairs)
    return sum(r * s for r, s in pairs) / seconds if seconds else None
