"""The optimizer of a job: each rule's own values, their defaults, and the engines that a rule works with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import ConfigError
from shoal.job import Budget, Data, Engine, Job, Optimizer
from shoal.job.fields import flatten
from shoal.job.optimizers import NAMES, OWN, RULES
from shoal.job.overrides import apply
from shoal.job.store import job_digest
from shoal.tasks.base import Task

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[3] / "docs/optimizers.md"
EVERYWHERE = ["sgd", "adam", "adamw", "rmsprop", "adagrad", "lion"]


def a_job(optimizer: Optimizer, engine: Any = "replicated") -> Job:
    data, budget = Data(train="x"), Budget(steps=3)
    return Job(task=Task(), data=data, budget=budget, optimizer=optimizer, engine=Engine(name=engine))


def test_the_tables_know_every_rule_and_every_field() -> None:
    assert tuple(RULES) == NAMES
    names = {f.name for f in fields(Optimizer)}
    assert set(OWN) == names - {"name", "lr", "clip_norm", "ema"}
    assert {name for rule in RULES.values() for name in rule.defaults} == set(OWN)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_set_is_the_rules_default_and_on_record(name: str) -> None:
    plain = Optimizer(name=name)  # type: ignore[arg-type]
    assert plain.values == dict(RULES[name].defaults)
    flat = flatten(a_job(plain))
    for field in OWN:
        assert (flat[f"optimizer.{field}"] == "none") == (field not in RULES[name].defaults)
    assert job_digest(a_job(plain)) == job_digest(a_job(plain.filled())), "said or left out, it is the same job"


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_the_rule_does_not_use_is_refused(name: str) -> None:
    one = {"betas": (0.5, 0.5), "nesterov": True}
    for field in OWN:
        value = one.get(field, 0.5)
        if field in RULES[name].defaults:
            changes = {field: value, **({"momentum": 0.5} if field == "nesterov" else {})}
            assert Optimizer(name=name, **changes).values[field] == value  # type: ignore[arg-type]
        else:
            users = " or ".join(other for other in RULES if field in RULES[other].defaults)
            with pytest.raises(ConfigError, match=rf"optimizer\.{field}=.* would have no effect: {name} .*use {users}"):
                Optimizer(name=name, **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "lamp"}, 'did you mean "lamb"'),
        ({"betas": (0.9,)}, "must be two numbers"),
        ({"betas": (0.9, 1.0)}, "between 0 and 1"),
        ({"eps": 0.0}, "more than 0"),
        ({"name": "sgd", "momentum": 1.0}, "between 0 and 1"),
        ({"name": "sgd", "nesterov": True, "momentum": 0.0}, "looks ahead along the momentum"),
        ({"name": "sgd", "nesterov": "yes"}, "is not one of None, True, False"),
        ({"name": "lars", "trust_coefficient": -1.0}, "more than 0"),
        ({"name": "rmsprop", "alpha": 2.0}, "between 0 and 1"),
        ({"weight_decay": -0.1}, "at least 0"),
    ],
)
def test_wrong_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Optimizer(**values)


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_that_needs_whole_layers_is_refused_with_zero(name: str) -> None:
    optimizer = Optimizer(name=name)  # type: ignore[arg-type]
    a_job(optimizer)
    if name in EVERYWHERE:
        a_job(optimizer, "zero")
        return
    said = rf"optimizer\.name={name} does not work with engine\.name=zero: it needs (norms of whole layers|whole matr"
    with pytest.raises(ConfigError, match=said + rf"ices).*engine\.name=replicated.*: {', '.join(EVERYWHERE)}$"):
        a_job(optimizer, "zero")


def test_another_rule_begins_with_its_own_defaults() -> None:
    job = a_job(Optimizer(lr=0.3, betas=(0.8, 0.9), weight_decay=0.7, clip_norm=2.0, ema=0.9))
    sgd = apply(job, ["optimizer.name=sgd", "optimizer.momentum=0.5"]).optimizer
    assert sgd == Optimizer(name="sgd", lr=0.3, momentum=0.5, clip_norm=2.0, ema=0.9)
    assert apply(job, ["optimizer.name=adamw"]) == job
    with pytest.raises(ConfigError, match=r"optimizer\.betas.* would have no effect: sgd"):
        apply(job, ["optimizer.name=sgd", "optimizer.betas=0.8,0.9"])


def test_the_page_shows_the_tables() -> None:
    page = PAGE.read_text()
    for name, rule in RULES.items():
        defaults = ", ".join(f"`{field}={_said(value)}`" for field, value in rule.defaults.items())
        assert f"| `{name}` | {defaults} | {rule.source}" in page
        zero = "yes" if "zero" in rule.engines else f"refused: needs {rule.needs}"
        assert f"| `{name}` | yes | {zero} |" in page


def _said(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
