"""The gradient noise scale against gradients whose noise is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.optim.noise import NO_PARTS, Measured, NoiseScale, Parts, measured, pooled_scale, scale_of

pytestmark = pytest.mark.unit

DIMENSIONS = 400


def step(random: np.random.Generator, true: np.ndarray, spread: float, bounds: list[int]) -> Measured | None:
    """One step of samples whose gradients are `true` plus noise of the total variance `spread` squared."""
    samples = true + random.normal(0.0, spread / math.sqrt(DIMENSIONS), (bounds[-1], DIMENSIONS))
    parts = NO_PARTS
    for a, b in pairwise(bounds):
        parts += Parts(1, 1.0 / (b - a), float(np.square(samples[a:b].mean(0)).sum()))
    return measured(parts, bounds[-1], float(np.linalg.norm(samples.mean(0))))


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1 << 30),
    scale=st.sampled_from([2.0, 16.0, 100.0]),
    cuts=st.lists(st.integers(1, 31), min_size=1, max_size=7, unique=True).map(sorted),
)
def test_the_estimate_is_the_true_ratio(seed: int, scale: float, cuts: list[int]) -> None:
    """Whatever parts the batch was computed in, also of unequal sizes."""
    random = np.random.default_rng(seed)
    true = random.normal(0.0, 1.0, DIMENSIONS)
    true /= np.linalg.norm(true)
    found = [step(random, true, math.sqrt(scale), [0, *cuts, 32]) for _ in range(200)]
    steps = [m for m in found if m is not None]
    assert len(steps) == 200
    assert np.mean([m.signal for m in steps]) == pytest.approx(1.0, abs=0.1 + 0.005 * scale)
    assert np.mean([m.noise for m in steps]) == pytest.approx(scale, rel=0.15)
    assert pooled_scale(steps) == pytest.approx(scale, rel=0.5)


def test_the_running_estimate_follows_and_the_critical_batch_remembers() -> None:
    running = NoiseScale(memory=10)
    assert running.scale is None
    assert running.critical_batch is None
    low, high = (Measured(4.0, 1.0 + s / 4, 32.0, 1.0 + s / 32) for s in (10.0, 1000.0))
    assert (low.signal, low.noise) == (pytest.approx(1.0), pytest.approx(10.0))
    running.add(low)
    assert running.scale == pytest.approx(10.0), "unbiased from the first step on"
    for _ in range(99):
        running.add(low)
    for _ in range(100):
        running.add(high)
    assert running.scale == pytest.approx(1000.0, rel=1e-3)
    assert running.critical_batch == pytest.approx(100.0, rel=0.2), "half of the steps each: the geometric mean"


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)), max_size=20))
def test_the_same_steps_give_the_same_bits(squares: list[tuple[float, float]]) -> None:
    steps = [Measured(4.0, small, 32.0, big) for small, big in squares]
    assert pooled_scale(steps) == pooled_scale(list(steps))
    one, other = NoiseScale(), NoiseScale()
    for at in steps:
        one.add(at)
        other.add(at)
    assert (one.scale, one.critical_batch) == (other.scale, other.critical_batch)


def test_what_cannot_be_told_is_not_told() -> None:
    part = Parts(1, 1 / 8, 2.0)
    assert measured(NO_PARTS, 8, 1.0) is None
    assert measured(part, 8, 1.0) is None, "one pass over the whole batch"
    assert measured(part + part, 16, math.inf) is None
    assert measured(Parts(2, 1 / 4, math.nan), 16, 1.0) is None
    assert measured(part + part, 16, 1.0) == Measured(8.0, 2.0, 16.0, 1.0)
    assert scale_of(0.0, 0.0) is None
    assert scale_of(1.0, -0.1) == 0.0
    assert scale_of(-0.1, 1.0) == math.inf
