"""Random streams that depend on what is computed, never on who computes it.

Each virtual shard of each step has its own stream, keyed by (job's seed, step, virtual shard) through a hash of our
own, so that it changes with no version of torch or Python. The key is all there is: nothing about random state need be
saved in a checkpoint.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1
_BUILD = 0x6275696C64  # "build": keeps the stream of the initial weights apart from those of all steps


def _mix(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): every bit of the input reaches every bit of the output."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def key(*parts: int) -> int:
    """64 bits from a sequence of integers; order and count matter."""
    state = _mix(len(parts))
    for part in parts:
        state = _mix(state ^ _mix(part & _MASK))
    return state


def seed_shard(seed: int, step: int, shard: int) -> None:
    """Start the random streams of one virtual shard: torch's (CPU and current CUDA device), numpy's and Python's own.

    Costs about ten microseconds.
    """
    _seed(key(seed, step, shard))


def seed_build(seed: int) -> None:
    """Start the streams for building a model: the same weights on every member."""
    _seed(key(seed, _BUILD))


def _seed(value: int) -> None:
    torch.default_generator.manual_seed(value)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    # A process that has not touched CUDA must not be made to: that costs seconds and hundreds of megabytes.
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)


def draws(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether any stream moved between two results of `positions`."""
    return any(
        not torch.equal(a, b) if isinstance(a, torch.Tensor) else a != b for a, b in zip(before, after, strict=True)
    )


def positions(device: torch.device) -> tuple[Any, ...]:
    """Where the streams stand that a model on `device` may draw from. Waits for the device."""
    name, keys, place, *_ = np.random.get_state()
    states: list[Any] = [torch.default_generator.get_state(), random.getstate(), (name, tuple(keys), place)]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return tuple(states)
