"""The learning-rate range test: train while the rate rises by equal ratios, and read off which rates the loss likes.

Source: Smith 2017, "Cyclical learning rates for training neural networks", arXiv:1506.01186, section 3.3; exponential
steps, smoothing and the end at four times the best loss as in fastai (Howard & Gugger 2020, arXiv:2002.04688). Pure;
imports no torch. docs/lr_find.md says how to read a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

LEAST = 20
"""Steps of a test; with fewer, a slope is noise."""
MEMORY = 0.05
"""Of the smoothing, as a share of the test; at least three steps."""
FALL = 0.05
"""A loss has fallen if it did by this share of what it began with, ..."""
NOISE = 3.0
"""... and by this many standard deviations of single losses."""
CAP = 0.5
"""Losses count no more than this share above what the test began with, in the smoothing."""
RISE = 0.1
"""A loss diverges only if it rose by this share of what it began with: close to 0 everything is four times the best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """When a loss counts as diverged: its mean over the last `memory` steps, the later ones weighing more, is more
    than `times` the lowest that this was, and RISE above it."""

    memory: float
    times: float = 4.0
    reason: str = "the loss has diverged"


class Trend:
    """Hears the loss of each step, and knows when it has diverged."""

    def __init__(self, rule: Divergence) -> None:
        self._rule = rule
        self._keep = math.exp(-1.0 / rule.memory)
        self._sum = self._weight = 0.0
        self._first: float | None = None
        self._best = math.inf

    def hear(self, loss: float) -> str | None:
        """Of the next step; returns why training should end, if it should.

        NaN stands for a loss that nobody knows any more: a step that made it so would not have been committed.
        """
        if math.isnan(loss):
            return None
        if math.isinf(loss):
            return self._rule.reason
        self._sum, self._weight = self._keep * self._sum + loss, self._keep * self._weight + 1.0
        now = self._sum / self._weight
        self._first = now if self._first is None else self._first
        self._best = min(self._best, now)
        most = self._best + max((self._rule.times - 1.0) * abs(self._best), RISE * abs(self._first))
        return self._rule.reason if now > most else None


def rule_for(steps: int) -> Divergence:
    """The rule that a test of `steps` steps ends by."""
    return Divergence(memory=max(3.0, MEMORY * steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a range test showed. Rates and losses are those of the steps before the loss diverged, in order."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged_at: float | None
    """Rate of the first step that counts as diverged; None: none did."""
    lowest: float | None
    """Rate at which the smoothed loss was lowest; None: it never fell."""
    steepest: float | None
    """Rate at which it fell fastest per factor of the rate; None: it never fell."""
    reason: str
    """What this means, as sentences."""

    @property
    def tenth(self) -> float | None:
        """A tenth of the rate of the lowest loss; None: that is not inside the test, or the loss never fell."""
        inside = self.diverged_at is not None or self.lowest != self.rates[-1]
        return self.lowest / 10 if self.lowest is not None and inside else None

    @property
    def suggestion(self) -> float | None:
        """The peak rate to go on with, to two digits; None: the test cannot tell.

        A tenth of the rate of the lowest loss; where that is not inside the test, the rate of the fastest fall.
        """
        rate = self.steepest if self.tenth is None else self.tenth
        return None if rate is None else float(f"{rate:.1e}")


def analyse(rates: Sequence[float], losses: Sequence[float], steps: int, *, next_rate: float | None = None) -> Finding:
    """What the test says. `rates` rise; `losses` are those of the steps that were done, of `steps` that were planned.

    `next_rate`: that of a step whose gradient was not finite, which ended the test; None: there was none.
    """
    end = _diverged(losses, steps)
    done = len(losses) if end is None else end
    diverged_at = rates[end] if end is not None else next_rate
    kept = tuple(rates[:done]), tuple(losses[:done])
    smooth = smoothed(_capped(kept[1]), rule_for(steps).memory)
    lowest = steepest = None
    if done >= LEAST // 2 and _fell(kept[1], smooth):
        at = min(range(done), key=smooth.__getitem__)
        lowest, steepest = rates[at], rates[_steepest(kept[0], smooth, at)]
    return Finding(
        rates=kept[0],
        losses=kept[1],
        smoothed=smooth,
        diverged_at=diverged_at,
        lowest=lowest,
        steepest=steepest,
        reason=_reason(kept[0], diverged_at, lowest, steepest),
    )


def smoothed(losses: Sequence[float], memory: float) -> tuple[float, ...]:
    """A mean with a memory of `memory` steps, once forwards and once backwards, so that nothing is delayed."""
    forwards = _mean(losses, memory / 2)
    return tuple(reversed(_mean(reversed(forwards), memory / 2)))


def _mean(values: Iterable[float], memory: float) -> list[float]:
    keep, total, weight, out = math.exp(-1.0 / memory), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1.0
        out.append(total / weight)
    return out


def _diverged(losses: Sequence[float], steps: int) -> int | None:
    trend = Trend(rule_for(steps))
    return next((i for i, loss in enumerate(losses) if trend.hear(loss) is not None), None)


def _capped(losses: Sequence[float]) -> list[float]:
    """The last steps before the end, whose losses may have any size, must not bend the curve before them."""
    first = median(losses[: LEAST // 4]) if losses else 0.0
    return [min(loss, first + CAP * abs(first)) for loss in losses]


def _fell(losses: Sequence[float], smooth: Sequence[float]) -> bool:
    # Of normal noise, the median of the differences between neighbours is 0.95 times its standard deviation.
    noise = median(abs(b - a) for a, b in pairwise(losses)) / 0.95
    return smooth[0] - min(smooth) > max(FALL * abs(smooth[0]), NOISE * noise)


def _steepest(rates: Sequence[float], smooth: Sequence[float], lowest: int) -> int:
    """Where, up to the lowest loss, it falls fastest over a window of a tenth of the test."""
    half = max(1, len(rates) // 20)

    def slope(i: int) -> float:
        a, b = max(0, i - half), min(len(rates) - 1, i + half)
        return (smooth[b] - smooth[a]) / (math.log(rates[b]) - math.log(rates[a]))

    return min(range(lowest + 1), key=slope)


def _reason(rates: Sequence[float], diverged_at: float | None, lowest: float | None, steepest: float | None) -> str:
    if diverged_at is not None and len(rates) < LEAST // 2:
        return (
            f"The loss diverged after {len(rates)} steps, at the rate {diverged_at:.2g}: too few to tell. Begin with a "
            f"lower rate (--from)."
        )
    if lowest is None or steepest is None:
        return (
            f"The loss did not fall between the rates {rates[0]:.2g} and {rates[-1]:.2g}, so there is nothing to "
            f"suggest. Try other rates (--from, --to), more steps (--steps), or a larger batch if it is only noisy."
        )
    fastest = f"The loss fell fastest at the rate {steepest:.2g} and was lowest at {lowest:.2g}."
    if diverged_at is not None:
        return f"{fastest} It diverged at {diverged_at:.2g}."
    if lowest == rates[-1]:
        return f"{fastest} That is the highest rate of the test, so that the best may lie beyond it: raise --to."
    return f"{fastest} It did not diverge up to {rates[-1]:.2g}."
