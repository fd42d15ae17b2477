"""Shoal: elastic training of deep-learning models on Ray clusters whose size changes while the training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.job import (
    Batch,
    Budget,
    ByNoise,
    Checkpoints,
    Constant,
    Cosine,
    Cost,
    Crop,
    Curriculum,
    CutMix,
    Data,
    Engine,
    Erase,
    Evaluation,
    Exponential,
    Failures,
    Flip,
    InverseSqrt,
    Job,
    LengthWarmup,
    Linear,
    MaskTokens,
    Milestones,
    Mixup,
    OneCycle,
    Optimizer,
    Piecewise,
    Polynomial,
    RangeTest,
    Rex,
    Scaled,
    Selection,
    Source,
    Step,
    Triangular,
    Triangular2,
    WarmRestarts,
    WarmupStableDecay,
    Workers,
)
from shoal.tasks.base import Task
from shoal.tuning.spec import Sweep

if TYPE_CHECKING:
    from shoal.launch.train import train

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Budget",
    "ByNoise",
    "Checkpoints",
    "Constant",
    "Cosine",
    "Cost",
    "Crop",
    "Curriculum",
    "CutMix",
    "Data",
    "Engine",
    "Erase",
    "Evaluation",
    "Exponential",
    "Failures",
    "Flip",
    "InverseSqrt",
    "Job",
    "LengthWarmup",
    "Linear",
    "MaskTokens",
    "Milestones",
    "Mixup",
    "OneCycle",
    "Optimizer",
    "Piecewise",
    "Polynomial",
    "RangeTest",
    "Rex",
    "Scaled",
    "Selection",
    "Source",
    "Step",
    "Sweep",
    "Task",
    "Triangular",
    "Triangular2",
    "WarmRestarts",
    "WarmupStableDecay",
    "Workers",
    "train",
]


def __getattr__(name: str) -> Any:
    # `train` needs Ray; a recipe that only defines a job must not pay for importing it.
    if name == "train":
        from shoal.launch.train import train

        return train
    raise AttributeError(f"module 'shoal' has no attribute {name!r}")
