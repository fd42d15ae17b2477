"""The systems that are compared, by name. Each is imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.churn.arms.base import Arm, Setup

ENGINES = ("replicated", "zero1", "zero2", "zero3")
SHOAL = ("shoal", "shoal-warm", "shoal-exact", "shoal-zero1", "shoal-zero2", "shoal-zero3")
PEERS = ("ray-train", "torchrun", "torchft", "restart")
PLAIN = ("ddp", "zero1", "zero2", "zero3")

MEASURE = dict.fromkeys((*SHOAL, *PEERS), "ddp") | {f"shoal-zero{k}": f"zero{k}" for k in (1, 2, 3)}
"""Whose fault-free speed an arm is held against."""


def make(name: str, setup: Setup) -> Arm:
    """The arm of that name, started as far as it has something to start before training."""
    if name in PLAIN:
        from benchmarks.churn.arms.plain import Plain

        return Plain(setup, name)
    if name in SHOAL:
        from benchmarks.churn.arms.on_shoal import OnShoal

        engine = name.rpartition("-")[2] if name.startswith("shoal-zero") else "replicated"
        numerics = "exact" if name == "shoal-exact" else "fast"
        return OnShoal(setup, engine, numerics, warm=name == "shoal-warm")
    if name == "ray-train":
        from benchmarks.churn.arms.ray_train import RayTrain

        return RayTrain(setup)
    if name == "torchrun":
        from benchmarks.churn.arms.torchrun import Torchrun

        return Torchrun(setup)
    if name == "torchft":
        from benchmarks.churn.arms.torchft import Torchft

        return Torchft(setup)
    if name == "restart":
        from benchmarks.churn.arms.restart import Restart

        return Restart(setup)
    raise ValueError(f"there is no arm {name!r}; there are: {', '.join((*SHOAL, *PEERS, *PLAIN))}")
