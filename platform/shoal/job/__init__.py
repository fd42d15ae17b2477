"""The job as frozen values: checks, defaults, overrides, recipes. Imports neither Ray nor torch."""

from shoal.job.augment import Crop, CutMix, Erase, Flip, MaskTokens, Mixup
from shoal.job.sampling import Curriculum, LengthWarmup, Selection, Source
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
    "Crop",
    "Curriculum",
    "CutMix",
    "Data",
    "Engine",
    "Erase",
    "Evaluation",
    "Failures",
    "Flip",
    "Job",
    "LengthWarmup",
    "MaskTokens",
    "Mixup",
    "Optimizer",
    "Schedule",
    "Selection",
    "Source",
    "Workers",
]
