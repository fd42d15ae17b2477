"""Shoal: elastic training of deep-learning models on Ray clusters whose size changes while the training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal.job import (
    Batch,
    Budget,
    Checkpoints,
    Crop,
    Curriculum,
    CutMix,
    Data,
    Engine,
    Erase,
    Evaluation,
    Failures,
    Flip,
    Job,
    LengthWarmup,
    MaskTokens,
    Mixup,
    Optimizer,
    Schedule,
    Selection,
    Source,
    Workers,
)
from shoal.tasks.base import Task

if TYPE_CHECKING:
    from shoal.launch.train import train

__version__ = "0.1.0"

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
    "Task",
    "Workers",
    "train",
]


def __getattr__(name: str) -> Any:
    # `train` needs Ray; a recipe that only defines a job must not pay for importing it.
    if name == "train":
        from shoal.launch.train import train

        return train
    raise AttributeError(f"module 'shoal' has no attribute {name!r}")
