"""The gradient noise scale, measured at no extra pass, and the critical batch size that it estimates.

Source: McCandlish et al. 2018, "An empirical model of large-batch training", arXiv:1812.06162, appendix A.1. The mean
gradient over b samples has the expected squared norm |G|^2 + tr(S) / b, G being the true gradient and S the covariance
of a single sample's. So the squared norms for two sizes of one step's batch give unbiased estimates of both, and

    noise scale = tr(S) / |G|^2      (B_simple there), in samples.

The large one is the step's whole gradient; the small ones are those of its virtual shards, or of whatever passes it was
computed in. Near the noise scale the batch is a fair bargain: twice the fewest steps, twice the fewest samples. The
ratio of two means is less biased than the mean of ratios, so both are smoothed by themselves. Pure; imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

MEMORY = 50
"""Steps over which the two estimates are smoothed."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Mean gradients of disjoint parts of one batch."""

    count: int = 0
    inverse: float = 0.0
    """Sum over the parts of 1 / samples."""
    squares: float = 0.0
    """Sum over the parts of the squared norm of the gradient."""

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.count + other.count, self.inverse + other.inverse, self.squares + other.squares)


NO_PARTS = Parts()


@dataclass(frozen=True, slots=True)
class Measured:
    """Mean squared norms of the gradients of two sizes of batch, in one step."""

    small: float
    """Samples of a part (the harmonic mean, where parts differ)."""
    small_square: float
    big: float
    """Samples of the whole batch."""
    big_square: float

    @property
    def signal(self) -> float:
        """Unbiased estimate of |G|^2; noise may make it negative."""
        return (self.big * self.big_square - self.small * self.small_square) / (self.big - self.small)

    @property
    def noise(self) -> float:
        """Unbiased estimate of tr(S)."""
        return (self.small_square - self.big_square) / (1.0 / self.small - 1.0 / self.big)


def measured(parts: Parts, size: int, norm: float) -> Measured | None:
    """What a step with a batch of `size` samples and the gradient norm `norm` tells; None: its parts do not tell it."""
    if parts.count < 2 or not math.isfinite(parts.squares + norm):
        return None
    small = parts.count / parts.inverse
    return Measured(small, parts.squares / parts.count, float(size), norm * norm) if small < size else None


def scale_of(signal: float, noise: float) -> float | None:
    """The noise scale; infinite where no signal is to be seen in the noise, None where there is neither."""
    if noise <= 0.0:
        return None if signal <= 0.0 else 0.0
    return noise / signal if signal > 0.0 else math.inf


def pooled_scale(steps: Iterable[Measured]) -> float | None:
    """The noise scale over some steps together, all of one weight, added in their order."""
    signal = noise = 0.0
    for step in steps:
        signal, noise = signal + step.signal, noise + step.noise
    return scale_of(signal, noise)


class NoiseScale:
    """The running estimate: exponential means with a memory of `memory` steps, unbiased from the first one on."""

    def __init__(self, memory: float = MEMORY) -> None:
        self._keep = math.exp(-1.0 / memory)
        self._signal = self._noise = 0.0
        self._log_sum, self._known = 0.0, 0

    def add(self, step: Measured) -> None:
        """Go on with the next step that was measured."""
        # Both means are short of the same weight, which their ratio does not see.
        self._signal = self._keep * self._signal + (1.0 - self._keep) * step.signal
        self._noise = self._keep * self._noise + (1.0 - self._keep) * step.noise
        if (scale := self.scale) is not None and 0.0 < scale < math.inf:
            self._log_sum, self._known = self._log_sum + math.log(scale), self._known + 1

    @property
    def scale(self) -> float | None:
        """The noise scale now; infinite where it is too large to be seen, None where nothing was measured."""
        return scale_of(self._signal, self._noise)

    @property
    def critical_batch(self) -> float | None:
        """The critical batch size of the whole training so far: the geometric mean of the noise scale over its steps,
        since that grows by orders of magnitude as the loss falls. None: not known."""
        return math.exp(self._log_sum / self._known) if self._known else None
