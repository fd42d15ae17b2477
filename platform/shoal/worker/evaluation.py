"""Evaluation on the held-out samples, divided among the members of a view."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from shoal.engines.protocol import Engine
from shoal.membership.messages import EvaluationReport
from shoal.worker.batches import to_device


@dataclass(slots=True)
class Evaluator:
    """This member's share of the held-out samples.

    The samples are cut into batches of a fixed size, whatever the number of members, so that the result does not
    depend on it; each member takes a contiguous range of the batches and keeps their samples in memory.
    """

    samples: int
    batch: int
    rank: int
    size: int
    read: Callable[[int, int], dict[str, np.ndarray]]
    """Positions [start, stop) of the held-out data -> columns."""
    _kept: dict[str, np.ndarray] | None = field(default=None)

    def run(self, engine: Engine, step: int, tick: Callable[[], None]) -> EvaluationReport:
        """Evaluate (collective where the engine's passes are). `tick` is called before every batch."""
        begun = time.perf_counter()
        ranges = self._batches()
        if self._kept is None:
            self._kept = (
                self.read(ranges[0][0], ranges[-1][1]) if ranges else self.read(0, min(self.batch, self.samples))
            )
        origin = ranges[0][0] if ranges else 0
        sums: dict[str, float] = {}
        for low, high in ranges:
            tick()
            metrics = engine.evaluate(to_device(self._kept, low - origin, high - origin, engine.device))
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value * (high - low)
        if engine.equal_micro_batches:
            for _ in range(self._most() - len(ranges)):  # keep the others' collective passes company
                engine.evaluate(to_device(self._kept, 0, min(self.batch, self.samples), engine.device))
        return EvaluationReport(step, sum(b - a for a, b in ranges), sums, time.perf_counter() - begun)

    def _batches(self) -> list[tuple[int, int]]:
        count = math.ceil(self.samples / self.batch)
        mine = range(self.rank * count // self.size, (self.rank + 1) * count // self.size)
        return [(i * self.batch, min((i + 1) * self.batch, self.samples)) for i in mine]

    def _most(self) -> int:
        """Batches of the member that has most."""
        return math.ceil(math.ceil(self.samples / self.batch) / self.size)
