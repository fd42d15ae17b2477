"""How the learning rate goes with the batch size. Pure; imports no torch.

linear  times size / base: Goyal et al. 2017, "Accurate, large minibatch SGD", arXiv:1706.02677.
sqrt    times sqrt(size / base): Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms",
        arXiv:2205.10287; Granziol et al. 2022, "Learning rates as a function of batch size", JMLR 23(173).
none    as it is.

The defaults follow the sources: linear for SGD, whose steps are sums of gradients, the square root for optimizers that
divide by the size of recent gradients. Only the rate is changed: Malladi et al. would also change betas and epsilon.
Both rules hold up to about the critical batch size (`shoal.optim.noise`); beyond it no rate makes up for fewer steps.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shoal.job.growth import Milestones

if TYPE_CHECKING:
    from shoal.job.spec import Job

LINEAR = frozenset({"sgd", "lars"})
"""Optimizers whose default is the linear rule (lars: You et al. 2017, arXiv:1708.03888)."""


def rule_of(job: Job) -> str:
    """The rule of `job`: its own, or its optimizer's default."""
    rule = job.batch.lr_rule
    return rule if rule != "auto" else "linear" if job.optimizer.name in LINEAR else "sqrt"


def rate_scale(job: Job, size: int) -> float:
    """What `optimizer.lr` is multiplied by for a batch of `size` samples: exactly 1 at the base."""
    base = job.batch.lr_base or job.batch.size
    if size == base:
        return 1.0
    return {"none": 1.0, "linear": size / base, "sqrt": math.sqrt(size / base)}[rule_of(job)]


def planned_size(job: Job, progress: float) -> int:
    """The batch of the step that ends at `progress`, as far as the job says it: what is measured may make it larger."""
    batch = job.batch
    return batch.growth.size_at(batch.size, progress) if isinstance(batch.growth, Milestones) else batch.size


def planned_rates(job: Job) -> tuple[tuple[int, float], ...]:
    """(size, what `optimizer.lr` is multiplied by) of all batches of the job, in rising order of their sizes."""
    return tuple((size, rate_scale(job, size)) for size in job.batch.sizes)
