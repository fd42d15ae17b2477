"""Spaces: what they hold, what is drawn from them, and what is refused before anything starts."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shoal
from shoal.errors import ConfigError
from shoal.job.overrides import apply
from shoal.tuning import choice, family, integers, loguniform, one_of, quniform, uniform
from shoal.tuning.space import Axis, Range, axes_of, check, grid, holds, overrides, random_point
from tests.support.runs import digits

pytestmark = pytest.mark.unit

SPACE: Mapping[str, Any] = {
    "optimizer.lr": loguniform(1e-4, 1e-1),
    "batch.size": choice(16, 32),
    "schedule": one_of(
        family(shoal.Cosine, warmup=uniform(0.0, 0.2), final=0.0),
        shoal.Rex,
        family(shoal.WarmupStableDecay, warmup=quniform(0.1, 0.3, 0.1)),
    ),
}


def test_a_familys_parameters_exist_only_with_it() -> None:
    axes = axes_of(SPACE)
    found = {str(p["schedule"]): p for n in range(50) if (p := random_point(axes, 0, n))}
    assert set(found) == {"Cosine", "Rex", "WarmupStableDecay"}
    assert 0 <= found["Cosine"]["schedule.warmup"] <= 0.2  # type: ignore[operator]
    assert found["Cosine"]["schedule.final"] == 0.0
    assert "schedule.warmup" not in found["Rex"]
    assert found["WarmupStableDecay"]["schedule.warmup"] in (0.1, 0.2, 0.3)
    assert {a.key for a in axes} >= {"schedule.warmup[Cosine]", "schedule.warmup[WarmupStableDecay]"}


@given(seed=st.integers(0, 1000), number=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_random_point_lies_in_the_space_and_is_a_job(seed: int, number: int) -> None:
    axes = axes_of(SPACE)
    point = random_point(axes, seed, number)
    assert holds(axes, point)
    assert point == random_point(axes, seed, number)
    job = apply(digits(), overrides(point))
    assert job.batch.size == point["batch.size"]
    assert job.optimizer.lr == point["optimizer.lr"]
    assert type(job.schedule).__name__ == point["schedule"]


@given(
    low=st.floats(1e-6, 10),
    width=st.floats(1e-3, 10),
    log=st.booleans(),
    value=st.floats(-100, 100),
    seed=st.integers(),
)
@settings(deadline=None)
def test_a_range_draws_and_clips_into_itself(low: float, width: float, log: bool, value: float, seed: int) -> None:
    domain = Range(low, low + width, log=log)
    assert domain.holds(domain.sample(random.Random(seed)))
    clipped = domain.clip(value)
    assert domain.holds(clipped)
    assert clipped == value or not domain.holds(value)


def test_a_grid_is_every_point_once() -> None:
    space = {"batch.size": choice(16, 32), "schedule": one_of(family("Cosine", final=choice(0.0, 0.1)), shoal.Rex)}
    points = list(grid(axes_of(space)))
    assert len(points) == 6
    assert len({tuple(p.items()) for p in points}) == 6
    assert {"batch.size": 16, "schedule": "Rex"} in points
    assert list(grid((Axis("a", integers(1, 3)), Axis("b", quniform(0.1, 0.3, 0.1))))) == [
        {"a": a, "b": b} for a in (1, 2, 3) for b in (0.1, 0.2, 0.3)
    ]


def test_a_point_of_another_space_does_not_lie_in_this_one() -> None:
    axes = axes_of({"batch.size": choice(16, 32), "optimizer.lr": uniform(0.1, 0.2)})
    assert holds(axes, {"batch.size": 16, "optimizer.lr": 0.1})
    assert not holds(axes, {"batch.size": 64, "optimizer.lr": 0.1})
    assert not holds(axes, {"batch.size": 16})
    assert not holds(axes, {"batch.size": 16, "optimizer.lr": 0.1, "seed": 1})


def test_values_that_are_no_plain_ones_are_kept_as_text() -> None:
    axes = axes_of({"optimizer.betas": choice((0.9, 0.95), (0.9, 0.99)), "schedule": choice(shoal.Rex(warmup=0.2))})
    job = apply(digits(), overrides(random_point(axes, 0, 0)))
    assert job.optimizer.betas in ((0.9, 0.95), (0.9, 0.99))
    assert job.schedule == shoal.Rex(warmup=0.2)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"optimiser.lr": choice(1e-3)}, "did you mean optimizer.lr"),
        ({"batch.size": choice(16, 30)}, "batch.size=30 cannot be split"),
        ({"optimizer.lr": uniform(-1.0, 1.0)}, "optimizer.lr=-1.0 must be more than 0"),
        ({"schedule": one_of(family("Cosin"))}, 'did you mean "Cosine"'),
        ({"schedule": one_of(family("Cosine", warm=0.1))}, "there is no schedule.warm"),
        ({"optimizer.lr": choice("fast")}, "'fast' is not a number"),
    ],
)
def test_a_field_or_value_that_the_job_does_not_have(space: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(axes_of(space), digits())


def test_a_bad_combination_among_thousands_is_found() -> None:
    """Each value is fine by itself; only together they are not."""
    many = {f"optimizer.{name}": uniform(0.1, 0.2) for name in ("clip_norm", "weight_decay", "eps")}
    space = {**many, "batch.size": choice(*range(8, 800, 8)), "batch.virtual_shards": choice(8, 16)}
    with pytest.raises(ConfigError, match=r"batch.size=\d+ cannot be split into batch.virtual_shards=16"):
        check(axes_of(space), digits())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: axes_of({}), "space is empty"),
        (lambda: axes_of({"optimizer.lr": 3}), "is no domain"),
        (lambda: axes_of({**SPACE, "schedule.warmup": uniform(0, 1)}), "schedule.warmup is in the space by itself"),
        (lambda: choice(), "has no values"),
        (lambda: choice(1, 1), "has a value twice"),
        (lambda: uniform(2, 1), "its first number must be less"),
        (lambda: loguniform(0, 1), "must begin above 0"),
        (lambda: uniform(0, float("inf")), "finite"),
        (lambda: integers(1, 2, step=3), "longer than the domain"),
        (lambda: family(shoal.Cosine, warm=0.1), "Cosine has no warm; it has warmup, final"),
        (lambda: one_of(shoal.Cosine, shoal.Cosine), "each once"),
        (lambda: list(grid(axes_of({"optimizer.lr": uniform(0, 1)}))), "a grid cannot have all values"),
    ],
)
def test_what_is_no_space_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_batch_that_the_budget_has_no_step_for_is_refused() -> None:
    job = digits(budget=shoal.Budget(samples=128))
    check(axes_of({"batch.size": choice(64, 128)}), job)
    with pytest.raises(ConfigError, match=r"\(batch.size=256\): budget.samples=128 is less than one step"):
        check(axes_of({"batch.size": choice(64, 256)}), job)
