"""Schedules as values of a job: what they refuse, as text, as an axis of overrides, in the run folder."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from shoal.errors import ConfigError
from shoal.job import (
    Budget,
    Constant,
    Cosine,
    Curriculum,
    Data,
    Exponential,
    InverseSqrt,
    Job,
    OneCycle,
    Piecewise,
    Polynomial,
    Rex,
    Scaled,
    Step,
    Triangular,
    WarmRestarts,
    WarmupStableDecay,
)
from shoal.job.fields import flatten
from shoal.job.overrides import apply
from shoal.job.recipe import load_recipe
from shoal.job.schedules import KINDS, Schedule
from shoal.job.store import job_digest, load_job, save_job
from shoal.job.text_values import format_value, parse
from shoal.run_folder import RunFolder
from tests.support.any_schedule import schedules
from tests.support.plain_task import Plain

pytestmark = pytest.mark.unit


RECIPE = """
import shoal
from tests.support.plain_task import Plain

job = shoal.Job(task=Plain(), data=shoal.Data(train="x"), budget=shoal.Budget(steps=9),
                schedule=shoal.Cosine(warmup=0.1))
"""
COMPOSED = Piecewise(pieces=((0.25, Constant()), (0.75, Scaled(by=0.5, of=WarmupStableDecay(shape="linear")))))


def a_job(schedule: Any = None) -> Job:
    given_ = {} if schedule is None else {"schedule": schedule}
    return Job(task=Plain(), data=Data(train="x"), budget=Budget(steps=9), **given_)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(warmup=1), r"Cosine\.warmup=1\.0 must lie between 0 and 1 \(1 excluded\)"),
        (lambda: Cosine(warmup=-0.1), r"Cosine\.warmup=-0\.1"),
        (lambda: Cosine(warmup="long"), r"Cosine\.warmup='long' must be a number, not str"),
        (lambda: Rex(final=float("nan")), r"Rex\.final=nan must be a finite number"),
        (lambda: Rex(final=1.5), r"Rex\.final=1\.5 must lie between 0 and 1"),
        (lambda: Polynomial(power=0), r"Polynomial\.power=0\.0 must be more than 0"),
        (lambda: Polynomial(power=float("inf")), r"Polynomial\.power=inf must be a finite number"),
        (lambda: Exponential(final=0), r"Exponential\.final=0\.0 is never reached .* use for example 0\.001"),
        (lambda: InverseSqrt(warmup=0), r"InverseSqrt\.warmup=0\.0 would begin with an infinite rate; use"),
        (lambda: Step(milestones=(0.5,), every=0.2), r"milestones=\(0\.5,\) and every=0\.2 are both set; leave one"),
        (lambda: Step(milestones=()), r"Step\.milestones=\(\) must be shares of the budget, for example \(0\.5, 0\.75"),
        (lambda: Step(milestones=[0.5]), r"Step\.milestones=\[0\.5\] must be shares"),
        (lambda: Step(milestones=(0.7, 0.5)), r"Step\.milestones=\(0\.7, 0\.5\) must rise"),
        (lambda: Step(milestones=(0.5, 1.5)), r"Step\.milestones=1\.5 must lie between"),
        (lambda: Step(milestones=(0.1,), warmup=0.2), r"lie behind the warm-up \(Step\.warmup=0\.2\)"),
        (lambda: Step(warmup=0.6), r"Step\.milestones=\(0\.5, 0\.75\) must .*lie behind the warm-up"),
        (lambda: Step(every=0), r"Step\.every=0 must be at least 1e-06"),
        (lambda: Step(every=0.1, warmup=0.2), r"Step\.every=0\.1 is shorter than the warm-up"),
        (lambda: Step(factor=2), r"Step\.factor=2\.0 must lie between 0 and 1"),
        (lambda: Triangular(cycles=1.5), r"Triangular\.cycles=1\.5 must be a whole number"),
        (lambda: Triangular(low=-1), r"Triangular\.low=-1\.0"),
        (lambda: OneCycle(shape="round"), r"OneCycle\.shape='round' is not one of cosine, linear"),
        (lambda: OneCycle(warmup=0.5, three_phase=True), r"OneCycle\.warmup=0\.5 with three_phase leaves nothing"),
        (lambda: OneCycle(start=2), r"OneCycle\.start=2\.0"),
        (lambda: WarmRestarts(cycles=0), r"WarmRestarts\.cycles=0 must be at least 1"),
        (lambda: WarmRestarts(growth=0), r"WarmRestarts\.growth=0\.0 must be more than 0"),
        (lambda: WarmRestarts(cycles=400, growth=1e300), r"differ by a factor of more than a million; use fewer"),
        (lambda: WarmupStableDecay(decay=0), r"WarmupStableDecay\.decay=0\.0 must be more than 0"),
        (lambda: WarmupStableDecay(decay=0.96), r"warmup=0\.05 and decay=0\.96 are more than the whole budget"),
        (lambda: WarmupStableDecay(shape="exp"), r"shape='exp' is not one of sqrt, linear, cosine"),
        (lambda: Piecewise(pieces=()), r"Piecewise\.pieces=\(\) must be pairs \(share, schedule\), for example"),
        (lambda: Piecewise(pieces=(0.5, Rex())), r"has 0\.5, which is no pair"),
        (lambda: Piecewise(pieces=((0.5, Rex()),)), r"add up to 0\.5, not to 1"),
        (lambda: Piecewise(pieces=((1.0, Rex), )), r"is no schedule; make one: Rex\(\)"),
        (lambda: Piecewise(pieces=((-1.0, Rex()), (2.0, Rex()))), r"a share in Piecewise\.pieces=-1\.0 must be more"),
        (lambda: Scaled(by=0, of=Rex()), r"Scaled\.by=0\.0 must be at least 1e-09"),
        (lambda: Scaled(by=1.5, of=Rex()), r"Scaled\.by=1\.5 must lie between 0 and 1"),
        (lambda: Scaled(by=0.5, of="Rex"), r"Scaled\.of='Rex' is no schedule; there are Constant, Linear, Cosine"),
        (lambda: a_job("cosine"), r"schedule='cosine' is no schedule; there are Constant"),
        (lambda: a_job(Rex), r"schedule=<class.*> is no schedule; make one: Rex\(\)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_value_reason_and_remedy(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_whole_numbers_are_the_same_job_as_floats():
    assert (
        repr(Step(warmup=0, milestones=(0.5,), factor=0))
        == "Step(warmup=0.0, milestones=(0.5,), every=None, factor=0.0)"
    )
    assert job_digest(a_job(Rex(warmup=0, final=0))) == job_digest(a_job(Rex(warmup=0.0, final=0.0)))
    assert repr(Piecewise(pieces=((1, Rex()),))) == repr(Piecewise(pieces=((1.0, Rex()),)))


def test_families_describe_themselves_and_their_source():
    for kind in KINDS:
        assert not kind.__doc__.startswith(f"{kind.__name__}("), "made by @dataclass"
    sourced = [k for k in KINDS if "arXiv:" in k.__doc__ or "torch" in k.__doc__ or "Smith" in k.__doc__]
    assert {k.__name__ for k in KINDS} - {k.__name__ for k in sourced} == {"Constant", "Scaled"}


@settings(deadline=None, max_examples=60)
@given(schedules)
def test_text_turns_back_into_the_schedule(schedule):
    assert parse(format_value(schedule, Schedule), Schedule, "schedule") == schedule
    flat = {name: text for name, text in flatten(a_job(schedule)).items() if name.partition(".")[0] == "schedule"}
    again = apply(a_job(Cosine(warmup=0.9)), [f"{name}={text}" for name, text in reversed(flat.items())])
    assert again.schedule == schedule


@pytest.mark.parametrize(
    ("overrides", "schedule"),
    [
        (["schedule=Rex"], Rex()),
        (["schedule=Rex()"], Rex()),
        (["schedule= OneCycle(warmup=0.2, shape='linear') "], OneCycle(warmup=0.2, shape="linear")),
        (["schedule.warmup=0.2"], Cosine(warmup=0.2)),
        (["schedule=Rex", "schedule.warmup=0.2"], Rex(warmup=0.2)),
        (["schedule.warmup=0.2", "schedule=Rex"], Rex(warmup=0.2)),
        (["schedule=Step", "schedule.every=0.3", "schedule=Step(factor=0.2)"], Step(every=0.3, factor=0.2)),
        (["schedule=Step", "schedule.milestones=0.3,0.6"], Step(milestones=(0.3, 0.6))),
        (["schedule=Scaled(by=0.5, of=Rex)", "schedule.of=Step", "schedule.of.every=0.3"],
         Scaled(by=0.5, of=Step(every=0.3))),
        (
            ["schedule=Piecewise(pieces=((0.25, Constant), (0.75, Scaled(by=1, of=Rex(warmup=0)))))"],
            Piecewise(pieces=((0.25, Constant()), (0.75, Scaled(by=1.0, of=Rex(warmup=0.0))))),
        ),
        (["schedule=Piecewise(pieces=((1, Rex),))", "schedule.pieces=(0.5, Rex), (0.5, Constant)"],
         Piecewise(pieces=((0.5, Rex()), (0.5, Constant())))),
    ],
)  # fmt: skip
def test_a_family_and_its_values_are_set(overrides, schedule):
    assert apply(a_job(), overrides).schedule == schedule


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=rex"], r"schedule='rex' is not Constant\(…\) or .*; did you mean \"Rex\"\?"),
        (["schedule=OneCicle(warmup=0.2)"], r"; did you mean \"OneCycle\"\?"),
        (["schedule=Rex(power=2)"], r"; Rex has warmup, final, and no power"),
        (["schedule=Rex(warmup=2)"], r"schedule='Rex\(warmup=2\)' is refused: Rex\.warmup=2\.0 must lie"),
        (["schedule=Scaled"], r"; Scaled needs by and of"),
        (["schedule=none"], r"schedule='none' is not Constant"),
        (["schedule.power=2"], r"no schedule\.power.*schedule is Cosine \(another kind: schedule=NAME\), which has"),
        (["schedule=Rex", "schedule.power=2"], r"schedule is Rex .* has: warmup, final"),
        (["schedule=Rex", "schedule.warmup=2"], r"Rex\.warmup=2\.0 must lie"),
        (["schedule=Rox", "schedule.warmup=0.2"], r"schedule='Rox' is not"),
        (["schedule.warmup=soon"], r"schedule\.warmup='soon' is not a number"),
    ],
)  # fmt: skip
def test_text_that_is_wrong_is_refused_by_name(overrides, message):
    with pytest.raises(ConfigError, match=message):
        apply(a_job(), overrides)


def test_the_record_has_the_family_and_its_values_apart():
    flat = flatten(a_job(Polynomial(power=3)))
    assert {n: t for n, t in flat.items() if n.startswith("schedule")} == {
        "schedule": "Polynomial", "schedule.warmup": "0.05", "schedule.final": "0.1", "schedule.power": "3.0",
    }  # fmt: skip
    assert "schedule.power" not in flatten(a_job())
    flat = flatten(a_job(Scaled(by=0.5, of=Rex())))
    assert flat["schedule"] == "Scaled(by=0.5, of=Rex(warmup=0.05, final=0.1))"
    assert (flat["schedule.of"], flat["schedule.of.final"]) == ("Rex", "0.1")
    assert len({job_digest(a_job(s)) for s in (Cosine(), Rex(), Rex(final=0), Scaled(by=0.5, of=Rex()), COMPOSED)}) == 5


@pytest.mark.parametrize(
    "values",
    [
        {"schedule": Rex()},
        {"schedule": Cosine(warmup=0.2)},
        {"schedule": COMPOSED},
        {"data": Data(train="x", curriculum=Curriculum(start=0.3))},
    ],
)
def test_another_family_than_the_recipes_is_an_override(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.py").write_text(RECIPE)
    recipe = load_recipe("r.py")
    job = replace(recipe.job, **values)
    folder = RunFolder(tmp_path / "runs/a")
    said = save_job(folder, job, recipe)
    assert said["source"] == "recipe/r.py"
    assert replace(load_job(folder), task=job.task) == job
    assert load_job(folder, ["schedule=Rex", "data.curriculum=none"]).schedule == Rex()

    # The record wins over a recipe that has changed since.
    copy = folder.recipe / "r.py"
    copy.write_text(copy.read_text().replace("Cosine(warmup=0.1)", "Polynomial(warmup=0.05, final=0.3)"))
    assert replace(load_job(folder), task=job.task) == job
    assert json.loads(folder.job.read_text())["digest"] == job_digest(load_job(folder))
