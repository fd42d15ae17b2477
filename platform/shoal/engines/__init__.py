"""Engines: replicated (torch) and zero (DeepSpeed), behind one small protocol. Import torch, never Ray."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from shoal.engines.protocol import Engine
    from shoal.job import Job

__all__ = ["make_engine"]


def make_engine(job: Job, device: torch.device) -> Engine:
    """A new engine for `job` on `device`; see `shoal.engines.factory.make_engine`. Imports torch only when called."""
    from shoal.engines import factory

    return factory.make_engine(job, device)
