"""How many steps a job takes, and which positions of the stream of samples each of them reads."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from shoal.job.growth import ByNoise, Milestones, grows_on_the_way
from shoal.job.schedules import ROUNDING
from shoal.job.spec import Job
from shoal.positions import Positions


def batches_of(job: Job, total_steps: int) -> Positions:
    """How many samples each step of `job` over `total_steps` steps trains on, as far as the job alone says: counted as
    if no others were read. Of a job that grows on the way (`growth.grows_on_the_way`): as it begins."""
    size, growth = job.batch.size, job.batch.growth
    if not isinstance(growth, Milestones) or grows_on_the_way(job):
        return Positions.even(size, total_steps)
    points = [p for p, _ in growth.at]
    if job.budget.steps is None:
        points = _in_steps(points, growth.sizes(size))
    # The first step that ends behind a milestone, as `Milestones.size_at` says it.
    firsts = [math.floor(total_steps * (p + ROUNDING)) + 1 for p in points]
    spans = {1: size} | {f: n for f, (_, n) in zip(firsts, growth.at, strict=True) if f <= total_steps}
    return Positions(tuple(spans.items()), total_steps)


def _in_steps(points: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Shares of a budget of samples as shares of the steps that read them, `sizes[i]` each before `points[i]`."""
    taken = [(b - a) / size for (a, b), size in zip(pairwise([0.0, *points, 1.0]), sizes, strict=True)]
    return [done / sum(taken) for done in accumulate(taken[:-1])]


def positions_of(job: Job, total_steps: int) -> Positions:
    """The positions of each step of `job` over `total_steps` steps: a batch, or, while samples are selected, all
    candidates for it. See `batches_of`."""
    batches, selection, shards = batches_of(job, total_steps), job.data.selection, job.batch.virtual_shards
    last = selection.last_step(total_steps) if selection is not None else 0
    if selection is None or not last:
        return batches
    spans = {first: shards * selection.candidates(n // shards) for first, n in batches.spans if first <= last}
    if last < total_steps:
        spans[last + 1] = batches.per_step(last + 1)
        spans |= {first: n for first, n in batches.spans if first > last}
    return Positions(tuple(spans.items()), total_steps)


OPEN = 1 << 32
"""Steps of a run of which nobody knows beforehand how many it will take: more than any run does."""


def foreseen(steps: int) -> int | None:
    """`steps` of a whole run, or None if that is OPEN."""
    return None if steps == OPEN else steps


def total_steps(job: Job, samples_per_epoch: int) -> int:
    """Steps that use the job's budget up: of samples or epochs, the fewest whose steps read as many samples; OPEN if
    only the doing can show that."""
    budget = job.budget
    if budget.spent is not None:
        return OPEN
    if budget.steps is not None:
        return budget.steps
    if isinstance(job.batch.growth, ByNoise):
        return OPEN
    wanted = samples_wanted(job, samples_per_epoch)
    most = max(1, -(-wanted // job.batch.size))  # no step reads less than a batch
    return 1 + bisect_left(range(1, most), wanted, key=lambda steps: positions_of(job, steps).total)


def samples_wanted(job: Job, samples_per_epoch: int) -> int:
    """How many samples a budget of samples or epochs gives."""
    budget = job.budget
    return int(budget.samples if budget.samples is not None else (budget.epochs or 0) * samples_per_epoch)
