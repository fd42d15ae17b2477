"""Learning-rate schedules as pure functions of progress. Imports no torch. The families: `shoal.job.schedules`.

*Progress* is the fraction of the budget that is used once a step is done: step `s` of `total` (counted from 1) trains
at the rate of progress `s / total`. Looking at the end of the step, not at its beginning, gives two properties that
people expect and that the usual `(s - 1) / total` lacks: a warm-up never yields rate 0 on the first step, and the last
step runs at exactly the final rate. It is what a `torch.optim.lr_scheduler` holds after `s` calls of `step()`.

A curve that jumps (a milestone, the end of a cycle, the seam between two pieces) jumps right after the step that ends
there: that step still belongs to what is before.

Because only the fraction matters, a job whose budget doubles keeps the shape of its curve.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable
from typing import Any

from shoal.job.schedules import (
    ROUNDING,
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Piecewise,
    Polynomial,
    RangeTest,
    Rex,
    Scaled,
    Schedule,
    Step,
    Triangular,
    Triangular2,
    WarmRestarts,
    WarmupStableDecay,
)


def learning_rate(peak: float, schedule: Schedule, progress: float) -> float:
    """Learning rate of the step that ends at `progress`. Beyond the end the last rate stays."""
    return peak * factor(schedule, progress)


def factor(schedule: Schedule, progress: float, origin: float = 0.0) -> float:
    """Learning rate as a fraction of its peak, in [0, 1], at `progress` in [0, 1] (clamped).

    A warm-up is a straight line from `origin` at progress 0 to where the curve begins at progress `schedule.warmup`.
    """
    progress = min(max(progress, 0.0), 1.0)
    if isinstance(schedule, Piecewise):
        return _piecewise(schedule, progress, origin)
    if isinstance(schedule, Scaled):
        return schedule.by * factor(schedule.of, progress, origin / schedule.by)
    curve = _CURVES[type(schedule)]
    if progress < schedule.warmup and not isinstance(schedule, OneCycle):
        top = curve(schedule, schedule.warmup)
        return origin + (top - origin) * (progress / schedule.warmup)
    return curve(schedule, progress)


def _rest(schedule: Any, progress: float) -> float:
    """How much is done of what follows the warm-up: 0 to 1."""
    return float((progress - schedule.warmup) / (1.0 - schedule.warmup))


def _between(top: float, bottom: float, height: float) -> float:
    """`bottom` at height 0 and `top` at height 1, exactly: a weighted mean, not `bottom + (top - bottom) * height`."""
    return height * top + (1.0 - height) * bottom


def _half_cosine(x: float) -> float:
    """From 1 at x = 0 to 0 at x = 1."""
    return 0.5 * (1.0 + math.cos(math.pi * x))


def _constant(schedule: Constant, progress: float) -> float:
    return 1.0


def _linear(schedule: Linear, progress: float) -> float:
    return _between(1.0, schedule.final, 1.0 - _rest(schedule, progress))


def _cosine(schedule: Cosine, progress: float) -> float:
    return _between(1.0, schedule.final, _half_cosine(_rest(schedule, progress)))


def _polynomial(schedule: Polynomial, progress: float) -> float:
    return _between(1.0, schedule.final, (1.0 - _rest(schedule, progress)) ** schedule.power)


def _step(schedule: Step, progress: float) -> float:
    if schedule.every is not None:
        passed = max(0, math.ceil(progress / schedule.every - ROUNDING) - 1)
    else:
        passed = bisect.bisect_left(schedule.milestones or (0.5, 0.75), progress - ROUNDING)
    return schedule.factor**passed


def _exponential(schedule: Exponential, progress: float) -> float:
    return float(schedule.final ** _rest(schedule, progress))


def _inverse_sqrt(schedule: InverseSqrt, progress: float) -> float:
    return math.sqrt(schedule.warmup / progress)


def _triangular(schedule: Triangular, progress: float, fading: float = 1.0) -> float:
    place = _rest(schedule, progress) * schedule.cycles
    cycle = min(math.floor(place), schedule.cycles - 1)
    height = 1.0 - abs(2.0 * (place - cycle) - 1.0)
    return _between(1.0, schedule.low, height * fading**cycle)


def _triangular2(schedule: Triangular2, progress: float) -> float:
    return _triangular(schedule, progress, fading=0.5)


def _one_cycle(schedule: OneCycle, progress: float) -> float:
    up = schedule.warmup
    marks = [(0.0, schedule.start), (up, 1.0), (1.0, schedule.final)]
    if schedule.three_phase:
        marks.insert(2, (2.0 * up, schedule.start))
    if up == 0:
        marks = [(0.0, 1.0), marks[-1]]
    last = next(i for i, (end, _) in enumerate(marks) if i and (progress <= end or end == 1.0))
    (begin, before), (end, after) = marks[last - 1 : last + 1]
    done = (progress - begin) / (end - begin)
    return _between(before, after, _half_cosine(done) if schedule.shape == "cosine" else 1.0 - done)


def _warm_restarts(schedule: WarmRestarts, progress: float) -> float:
    rest, cycles = _rest(schedule, progress), schedule.cycles
    # With cycles of the lengths 1, g, g^2 ... the first k of them are (g^k - 1) / (g^cycles - 1) of the whole.
    growth = math.log(schedule.growth)
    if abs(growth) * cycles < ROUNDING:  # of one length
        begun = rest * cycles
        cycle = min(max(math.ceil(begun - ROUNDING) - 1, 0), cycles - 1)
        begin, end = cycle / cycles, (cycle + 1) / cycles
    else:
        whole = math.expm1(cycles * growth)
        begun = math.log1p(rest * whole) / growth if rest < 1.0 else float(cycles)
        cycle = min(max(math.ceil(begun - ROUNDING) - 1, 0), cycles - 1)
        begin, end = math.expm1(cycle * growth) / whole, math.expm1((cycle + 1) * growth) / whole
    done = min(max((rest - begin) / (end - begin), 0.0), 1.0)
    return _between(1.0, schedule.final, _half_cosine(done))


def _rex(schedule: Rex, progress: float) -> float:
    left = 1.0 - _rest(schedule, progress)
    return _between(1.0, schedule.final, left / (0.5 + 0.5 * left))


def _warmup_stable_decay(schedule: WarmupStableDecay, progress: float) -> float:
    done = 1.0 - (1.0 - progress) / schedule.decay
    done = 0.0 if done < ROUNDING else done  # the root of a rounding error would be a hundred million times as large
    heights = {"sqrt": 1.0 - math.sqrt(done), "linear": 1.0 - done, "cosine": _half_cosine(done)}
    return _between(1.0, schedule.final, heights[schedule.shape])


def _range_test(schedule: RangeTest, progress: float) -> float:
    return float(schedule.start ** (1.0 - _rest(schedule, progress)))


def _piecewise(schedule: Piecewise, progress: float, origin: float) -> float:
    begin = 0.0
    for share, piece in schedule.pieces[:-1]:
        if progress <= begin + share + ROUNDING:
            return factor(piece, (progress - begin) / share, origin)
        begin, origin = begin + share, factor(piece, 1.0)
    return factor(schedule.pieces[-1][1], (progress - begin) / (1.0 - begin), origin)


_CURVES: dict[type[Any], Callable[[Any, float], float]] = {
    Constant: _constant,
    Linear: _linear,
    Cosine: _cosine,
    Polynomial: _polynomial,
    Step: _step,
    Exponential: _exponential,
    InverseSqrt: _inverse_sqrt,
    Triangular: _triangular,
    Triangular2: _triangular2,
    OneCycle: _one_cycle,
    WarmRestarts: _warm_restarts,
    Rex: _rex,
    WarmupStableDecay: _warmup_stable_decay,
    RangeTest: _range_test,
}
"""The factor at a progress behind the warm-up (of `OneCycle`: at any)."""
