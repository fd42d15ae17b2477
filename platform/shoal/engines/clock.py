"""Where the time of a step goes, without slowing it down: host time on the CPU, recorded events on a GPU."""

from __future__ import annotations

import time
from typing import Any

import torch

from shoal.engines.protocol import StepTimes


class StepClock:
    """Marks points of a step and adds up the seconds between them once the device has passed them anyway.

    On a GPU `times.update_s` is that of the step before, because waiting for this one would cost what it measures.
    """

    def __init__(self, device: torch.device) -> None:
        self.times = StepTimes()
        self._on_device = device.type == "cuda"
        self._passes: list[tuple[Any, Any, Any]] = []
        self._reductions: list[tuple[Any, Any]] = []
        self._update: tuple[Any, Any] | None = None
        self._computed: Any = None

    def mark(self) -> Any:
        """Now, in the order of the device's work."""
        if not self._on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def gradients_ready(self, *_: Any) -> None:
        """The backward pass has computed its last gradient; what follows inside it is communication."""
        self._computed = self.mark()

    def end_pass(self, begun: Any) -> None:
        """A forward and backward pass that began at mark `begun` has been issued."""
        self._passes.append((begun, self._computed, self.mark()))
        self._computed = None

    def end_reduction(self, begun: Any) -> None:
        """A reduction of gradients outside of any pass, that began at mark `begun`, has been issued."""
        self._reductions.append((begun, self.mark()))

    def end_update(self, begun: Any) -> None:
        """The update that began at mark `begun` has been issued; the device has passed that mark: fill in `times`."""
        if self._on_device:
            self._fill(self._update)
            self._update = (begun, self.mark())
        else:
            self._fill((begun, self.mark()))

    def forget(self) -> None:
        """Drop marks of a step that will not be finished."""
        self._passes, self._reductions, self._update, self._computed = [], [], None, None

    def _fill(self, update: tuple[Any, Any] | None) -> None:
        whole = sum(self._seconds(begun, end) for begun, _, end in self._passes)
        exposed = sum(self._seconds(ready, end) for _, ready, end in self._passes if ready is not None)
        alone = sum(self._seconds(begun, end) for begun, end in self._reductions)
        self.times = StepTimes(
            compute_s=whole - exposed,
            communicate_s=exposed + alone,
            update_s=self._seconds(*update) if update is not None else 0.0,
        )
        self._passes, self._reductions = [], []

    def _seconds(self, a: Any, b: Any) -> float:
        return a.elapsed_time(b) / 1e3 if self._on_device else b - a
