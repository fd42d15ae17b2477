"""Rates that go with the batch."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.job import Batch, Budget, ByNoise, Data, Job, Milestones, Optimizer
from shoal.optim.batch_rules import planned_rates, planned_size, rate_scale, rule_of
from tests.support.plain_task import Plain

pytestmark = pytest.mark.unit


def job(name: Any = "adamw", **batch: Any) -> Job:
    parts: dict[str, Any] = {"task": Plain(), "data": Data(train="nowhere"), "budget": Budget(steps=8)}
    return Job(**parts, optimizer=Optimizer(name=name), batch=Batch(**{"size": 64, **batch}))


def test_each_optimizer_has_its_sources_rule() -> None:
    assert {name: rule_of(job(name)) for name in ("sgd", "lars", "adam", "adamw", "lamb", "lion", "rmsprop")} == {
        "sgd": "linear", "lars": "linear", "adam": "sqrt", "adamw": "sqrt", "lamb": "sqrt", "lion": "sqrt",
        "rmsprop": "sqrt",
    }  # fmt: skip
    assert rule_of(job("sgd", lr_rule="sqrt")) == "sqrt"


@pytest.mark.parametrize("rule", ["auto", "none", "linear", "sqrt"])
def test_without_growth_and_base_nothing_changes(rule: str) -> None:
    assert rate_scale(job(lr_rule=rule), 64) == 1.0
    assert planned_rates(job(lr_rule=rule)) == ((64, 1.0),)


@settings(deadline=None)
@given(size=st.integers(1, 1 << 20), base=st.integers(1, 1 << 20), factor=st.integers(1, 64))
def test_twice_the_batch_is_twice_the_rate_or_its_root(size: int, base: int, factor: int) -> None:
    for rule, power in (("none", 0.0), ("linear", 1.0), ("sqrt", 0.5)):
        made = job(lr_rule=rule, lr_base=base)
        assert rate_scale(made, size * factor) == pytest.approx(rate_scale(made, size) * factor**power)
        assert rate_scale(made, base) == 1.0


def test_the_rate_follows_the_batch() -> None:
    grown = job("sgd", growth=Milestones(((0.5, 128), (0.75, 256))))
    assert [planned_size(grown, p) for p in (0.1, 0.5, 0.51, 0.75, 1.0)] == [64, 64, 128, 128, 256]
    assert planned_rates(grown) == ((64, 1.0), (128, 2.0), (256, 4.0))
    measured = job(growth=ByNoise(most=300), lr_base=16)
    assert planned_size(measured, 0.9) == 64
    assert planned_rates(measured) == ((64, 2.0), (128, math.sqrt(8)), (256, 4.0))
