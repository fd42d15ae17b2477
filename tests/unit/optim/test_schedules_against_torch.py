"""Schedules against torch's own, step by step, to 1e-9 of the peak.

Curves without jumps are what torch holds after `s` calls of `step()` (`held`); curves with jumps are what torch trains
step `s` with, after `s - 1` calls (`trained`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch.optim import lr_scheduler as theirs

from shoal.job import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Piecewise,
    Polynomial,
    Scaled,
    Step,
    Triangular,
    Triangular2,
    WarmRestarts,
)
from shoal.job.schedules import Schedule
from shoal.optim.schedules import learning_rate

pytestmark = pytest.mark.unit

PEAK = 0.5
TOTAL = 120
Make = Callable[[torch.optim.Optimizer], Any]


def ours(schedule: Schedule, total: int = TOTAL) -> list[float]:
    return [learning_rate(PEAK, schedule, step / total) for step in range(1, total + 1)]


def held_by_torch(make: Make, total: int = TOTAL) -> list[float]:
    """The rate before any call of `step()`, and after 1, 2, ... `total` of them."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    scheduler = make(optimizer)
    out = [optimizer.param_groups[0]["lr"]]
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        out.append(optimizer.param_groups[0]["lr"])
    return out


def same(found: list[float], right: list[float]) -> None:
    assert found == pytest.approx(right, rel=0, abs=1e-9 * PEAK)


CASES: dict[str, tuple[Schedule, Make]] = {
    "linear": (Linear(warmup=0, final=0.1), lambda o: theirs.LinearLR(o, 1.0, 0.1, total_iters=TOTAL)),
    "cosine": (Cosine(warmup=0, final=0.1), lambda o: theirs.CosineAnnealingLR(o, TOTAL, eta_min=0.1 * PEAK)),
    "polynomial": (Polynomial(warmup=0, final=0), lambda o: theirs.PolynomialLR(o, TOTAL, power=2.0)),
    "polynomial 0.9": (
        Polynomial(warmup=0, final=0, power=0.9),
        lambda o: theirs.PolynomialLR(o, TOTAL, power=0.9),
    ),
    "exponential": (
        Exponential(warmup=0, final=0.01),
        lambda o: theirs.ExponentialLR(o, gamma=0.01 ** (1 / TOTAL)),
    ),
    "triangular": (
        Triangular(cycles=3, low=0.2),
        lambda o: theirs.CyclicLR(o, 0.2 * PEAK, PEAK, step_size_up=20, mode="triangular", cycle_momentum=False),
    ),
    "triangular2": (
        Triangular2(cycles=4, low=0.2),
        lambda o: theirs.CyclicLR(o, 0.2 * PEAK, PEAK, step_size_up=15, mode="triangular2", cycle_momentum=False),
    ),
    "inverse square root": (
        InverseSqrt(warmup=0.25),
        lambda o: theirs.LambdaLR(o, lambda s: s / 30 if s < 30 else math.sqrt(30 / s)),
    ),
    "warm-up and cosine": (
        Cosine(warmup=0.25, final=0.2),
        lambda o: theirs.LambdaLR(
            o, lambda s: s / 30 if s < 30 else 0.2 + 0.4 * (1 + math.cos(math.pi * (s - 30) / 90))
        ),
    ),
    "sequence": (
        Piecewise(pieces=((0.25, Constant(warmup=0)), (0.75, Cosine(warmup=0, final=0)))),
        lambda o: theirs.SequentialLR(
            o, [theirs.ConstantLR(o, factor=1.0), theirs.CosineAnnealingLR(o, 90)], milestones=[30]
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_curves_without_jumps_are_what_torch_holds(name: str) -> None:
    schedule, make = CASES[name]
    same(ours(schedule), held_by_torch(make)[1:])


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("warmup", [0.25, 0.4])
def test_one_cycle(shape: Literal["cosine", "linear"], three_phase: bool, warmup: float) -> None:
    # torch counts its rates from the one before the first step, and its phases to one before their ends.
    def make(optimizer: torch.optim.Optimizer) -> Any:
        return theirs.OneCycleLR(
            optimizer, PEAK, total_steps=TOTAL + 1, pct_start=(warmup * TOTAL + 1) / (TOTAL + 1), cycle_momentum=False,
            anneal_strategy={"cosine": "cos"}.get(shape, shape), three_phase=three_phase, div_factor=25.0,
            final_div_factor=1e4,
        )  # fmt: skip

    same(ours(OneCycle(warmup=warmup, shape=shape, three_phase=three_phase)), held_by_torch(make)[1:])


STEPS: dict[str, tuple[Schedule, Make]] = {
    "every": (Step(warmup=0, every=0.25, factor=0.3), lambda o: theirs.StepLR(o, 30, gamma=0.3)),
    "every, with a remainder": (Step(warmup=0, every=0.35, factor=0.3), lambda o: theirs.StepLR(o, 42, gamma=0.3)),
    "milestones": (
        Step(warmup=0, milestones=(0.3, 0.7), factor=0.1),
        lambda o: theirs.MultiStepLR(o, [36, 84], gamma=0.1),
    ),
    "the usual milestones": (Step(warmup=0), lambda o: theirs.MultiStepLR(o, [60, 90], gamma=0.1)),
    "constant pieces": (
        Piecewise(pieces=((0.25, Constant(warmup=0)), (0.75, Scaled(by=0.5, of=Constant(warmup=0))))),
        lambda o: theirs.SequentialLR(
            o, [theirs.ConstantLR(o, 1.0), theirs.ConstantLR(o, 0.5, total_iters=TOTAL)], milestones=[30]
        ),
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_curves_with_jumps_are_what_torch_trains_with(name: str) -> None:
    schedule, make = STEPS[name]
    same(ours(schedule), held_by_torch(make)[:-1])


@pytest.mark.parametrize(
    ("cycles", "growth", "first", "total"), [(3, 1.0, 40, 120), (3, 2.0, 20, 140), (4, 3.0, 5, 200), (1, 2.0, 50, 50)]
)
def test_warm_restarts(cycles: int, growth: float, first: int, total: int) -> None:
    schedule = WarmRestarts(warmup=0, final=0.1, cycles=cycles, growth=growth)
    found = ours(schedule, total)
    right = held_by_torch(
        lambda o: theirs.CosineAnnealingWarmRestarts(o, first, T_mult=int(growth), eta_min=0.1 * PEAK), total
    )[1:]
    ends, length = [], first
    for _ in range(cycles):
        ends.append((ends[-1] if ends else 0) + length)
        length *= int(growth)
    assert ends[-1] == total
    for end in ends:  # where a cycle ends we are at the bottom, and torch is back at the peak
        assert found[end - 1] == pytest.approx(0.1 * PEAK, abs=1e-9)
        assert right[end - 1] == pytest.approx(PEAK)
    between = [i for i in range(total) if i + 1 not in ends]
    same([found[i] for i in between], [right[i] for i in between])


def test_a_sequence_that_jumps_differs_at_the_seam_only() -> None:
    schedule = Piecewise(pieces=((0.5, Linear(warmup=0, final=0.2)), (0.5, Exponential(warmup=0, final=0.1))))

    def make(optimizer: torch.optim.Optimizer) -> Any:
        parts = [
            theirs.LinearLR(optimizer, 1.0, 0.2, total_iters=60),
            theirs.ExponentialLR(optimizer, gamma=0.1 ** (1 / 60)),
        ]
        return theirs.SequentialLR(optimizer, parts, milestones=[60])

    found, right = ours(schedule), held_by_torch(make)[1:]
    assert found[59] == pytest.approx(0.2 * PEAK)
    same(found[:59] + found[60:], right[:59] + right[60:])
