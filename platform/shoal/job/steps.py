"""How many steps a job takes, and which positions of the stream of samples each of them reads."""

from __future__ import annotations

from bisect import bisect_left

from shoal.job.spec import Job
from shoal.positions import Positions


def positions_of(job: Job, total_steps: int) -> Positions:
    """The positions of each step of `job` over `total_steps` steps: a batch, or, while samples are selected, all
    candidates for it."""
    size, selection = job.batch.size, job.data.selection
    last = selection.last_step(total_steps) if selection is not None else 0
    if selection is None or not last:
        return Positions.even(size, total_steps)
    pool = job.batch.virtual_shards * selection.candidates(job.batch.shard_size)
    return Positions(((1, pool), (last + 1, size)) if last < total_steps else ((1, pool),), total_steps)


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
    wanted = int(budget.samples if budget.samples is not None else (budget.epochs or 0) * samples_per_epoch)
    most = max(1, -(-wanted // job.batch.size))  # no step reads less than a batch
    return 1 + bisect_left(range(1, most), wanted, key=lambda steps: positions_of(job, steps).total)
