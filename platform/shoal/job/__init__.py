"""The job as frozen values: checks, defaults, overrides, recipes. Imports neither Ray nor torch."""

from shoal.job.spec import (
    Batch,
    Budget,
    Checkpoints,
    Data,
    Engine,
    Evaluation,
    Failures,
    Job,
    Optimizer,
    Schedule,
    Workers,
)

__all__ = [
    "Batch",
    "Budget",
    "Checkpoints",
    "Data",
    "Engine",
    "Evaluation",
    "Failures",
    "Job",
    "Optimizer",
    "Schedule",
    "Workers",
]
