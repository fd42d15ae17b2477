"""Learning-rate schedules as pure functions of progress. Imports no torch.

*Progress* is the fraction of the budget that is used once a step is done: step `s` of `total` (counted from 1) trains
at the rate of progress `s / total`. Looking at the end of the step, not at its beginning, gives two properties that
people expect and that the usual `(s - 1) / total` lacks: a warm-up never yields rate 0 on the first step, and the last
step runs at exactly the final rate. It is what a `torch.optim.lr_scheduler` holds after `s` calls of `step()`.

Because only the fraction matters, a job whose budget doubles keeps the shape of its curve.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.job.spec import Schedule


def factor(schedule: Schedule, progress: float) -> float:
    """Learning rate as a fraction of its peak, in [0, 1], at `progress` in [0, 1] (clamped).

    Warm-up: a straight line from 0 at progress 0 to 1 at progress `schedule.warmup`. After it, over the rest:
    `constant` stays at 1; `linear` falls on a straight line, `cosine` on half a cosine, to `schedule.final`.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < schedule.warmup:
        return progress / schedule.warmup
    if schedule.name == "constant":
        return 1.0
    rest = (progress - schedule.warmup) / (1.0 - schedule.warmup)
    height = 1.0 - rest if schedule.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * rest))
    # A weighted mean, not `final + (1 - final) * height`: this one is exactly 1 at the top and `final` at the end.
    return height + (1.0 - height) * schedule.final


def learning_rate(peak: float, schedule: Schedule, step: int, total_steps: int) -> float:
    """Learning rate of step `step`, the first being 1, of `total_steps`. Steps beyond the end keep the last rate."""
    if step < 1 or total_steps < 1:
        raise ValueError(f"steps count from 1, got step={step} of total_steps={total_steps}")
    return peak * factor(schedule, step / total_steps)
