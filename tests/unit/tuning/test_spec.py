"""Sweeps as values: what is refused, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.errors import ConfigError
from shoal.job.overrides import apply
from shoal.tuning import ASHA, TPE, Grid, HyperBand, Median, Population, Random, Sweep, choice, uniform
from shoal.tuning.propose import propose
from shoal.tuning.recipe import load_sweep
from shoal.tuning.space import check
from shoal.tuning.spec import check_amounts
from tests.support.runs import digits

pytestmark = pytest.mark.unit

RATES = {"optimizer.lr": choice(1e-3, 1e-2, 1e-1)}


def sweep(**changes: Any) -> Sweep:
    return Sweep(**{"job": digits(), "space": RATES, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {}}, "space is empty"),
        ({"job": 3}, "must be a shoal.Job, or the path"),
        ({"trials": 0}, "trials=0"),
        ({"at_once": 0}, "at_once=0"),
        ({"workers": 1.5}, "workers=1.5 must be a whole number"),
        ({"mode": "least"}, "mode='least' is not one of min, max"),
        ({"metric": ""}, "metric is empty"),
        ({"name": "a b"}, "name='a b'"),
        ({"overrides": "seed=1"}, "must be several"),
        ({"first": ({"optimizer.lr": 3.0},)}, "is no point of the space: a value or a name"),
        ({"first": ({},)}, "it lacks optimizer.lr"),
        ({"search": TPE}, r"make one: TPE\(...\)"),
        ({"stop_early": Random()}, "none of ASHA, Median, HyperBand"),
        ({"search": Grid(), "space": {"optimizer.lr": uniform(0.1, 1)}}, "a grid cannot have all values"),
        ({"objectives": ("val/loss", "cost")}, "needs search=TPE"),
        ({"search": TPE(), "objectives": ("cost", "val/loss")}, "must be the metric"),
        ({"search": TPE(), "objectives": ("val/loss", "costs")}, 'did you mean "cost"'),
        ({"search": TPE(), "objectives": ("val/loss", "cost"), "stop_early": ASHA(grace=9)}, "exclude each other"),
        ({"search": Population(every=5), "trials": 4}, "needs at_once=4"),
        (
            {"search": Population(every=5), "trials": 2, "space": {"batch.size": choice(8, 16)}},
            "cannot change batch.size",
        ),
        ({"search": Population(every=5), "trials": 2, "stop_early": ASHA(grace=9)}, "has no stop_early"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sweep(**changes)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ASHA(grace=0), "ASHA.grace=0 must be more than 0"),
        (lambda: ASHA(grace=1, resource="hours"), "ASHA.resource='hours' is not one of"),
        (lambda: ASHA(grace=1, reduction=1), "reduction=1 must be more than 1"),
        (lambda: Median(grace=1, at_least=0), "Median.at_least=0"),
        (lambda: HyperBand(grace=1, brackets=0), "HyperBand.brackets=0"),
        (lambda: HyperBand(grace=1, reduction=0.5), "HyperBand.reduction=0.5"),
        (lambda: Population(every=1, quantile=0.6), "quantile=0.6"),
        (lambda: TPE(startup=0), "TPE.startup=0"),
    ],
)
def test_rules_refuse_what_makes_no_sense(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


def test_the_number_of_trials() -> None:
    assert sweep(search=Grid()).total == 3
    assert sweep(search=Grid(), trials=2).total == 2
    assert sweep(search=Grid(), trials=9).total == 3
    assert sweep().total == 24


def test_rungs() -> None:
    assert sweep(stop_early=ASHA(grace=10, reduction=3)).rungs(100) == (10, 30, 90)
    assert sweep(stop_early=ASHA(grace=10, reduction=3)).rungs(90) == (10, 30, 90)
    assert sweep(stop_early=HyperBand(grace=10)).rungs(100) == (10, 30, 90)
    assert sweep(stop_early=Median(grace=10)).rungs(100) == ()


def test_amounts_that_can_never_come_are_refused() -> None:
    often = digits(evaluation=shoal.Evaluation(every=2))
    check_amounts(sweep(stop_early=ASHA(grace=64)), often, 384, 12)
    with pytest.raises(ConfigError, match="is no less than a whole trial"):
        check_amounts(sweep(stop_early=ASHA(grace=384)), often, 384, 12)
    with pytest.raises(ConfigError, match=r"evaluation.every=None of 12 steps gives only the last one"):
        check_amounts(sweep(stop_early=ASHA(grace=64)), digits(), 384, 12)
    with pytest.raises(ConfigError, match="less than one step"):
        check_amounts(sweep(), digits(budget=shoal.Budget(samples=31)), 31, 1)


def test_values_of_the_sweep_and_of_its_job_are_set_as_text() -> None:
    changed = apply(sweep(), ["trials=4", "search=TPE(seed=3)", "stop_early=ASHA(grace=100)", "job.budget.steps=5"])
    assert (changed.trials, changed.search, changed.stop_early) == (4, TPE(seed=3), ASHA(grace=100))
    assert isinstance(changed.job, shoal.Job)
    assert changed.job.budget.steps == 5
    with pytest.raises(
        ConfigError, match=r"there is no trial; did you mean trials\?. A sweep has: job, overrides, space"
    ):
        apply(sweep(), ["trial=4"])


def test_a_recipe_names_its_job_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "one.py").write_text("from tests.support.runs import digits\njob = digits(seed=7)\n")
    recipe = tmp_path / "tuning" / "lr.py"
    recipe.parent.mkdir()
    recipe.write_text(
        "from shoal.tuning import Sweep, choice\n"
        "space = {'optimizer.lr': choice(0.1, 0.2)}\n"
        "sweep = Sweep(job='../jobs/one.py', space=space, overrides=('budget.steps=5',))\n"
        "job = 3\n"
    )
    loaded = load_sweep(recipe, ["trials=5", "job.seed=8"])
    assert (loaded.job.seed, loaded.job.budget.steps) == (8, 5)
    assert loaded.sweep.trials == 5
    assert loaded.asked == ("budget.steps=5", "seed=8")
    with pytest.raises(ConfigError, match=r"`job` in .*lr.py is a int, not a shoal.Sweep; Sweeps in this file: sweep"):
        load_sweep(f"{recipe}:job")


@pytest.mark.parametrize("name", ["lr_schedule", "batch_size", "population"])
def test_the_recipes_of_this_project_are_sweeps_of_jobs(name: str) -> None:
    loaded = load_sweep(Path(__file__).parents[3] / "tuning" / f"{name}.py")
    check(loaded.sweep.axes, loaded.job)
    assert loaded.job.name == "gpt"
    point = propose(loaded.sweep, 0, [])
    assert point is not None
    assert point == dict(loaded.sweep.first[0]) if loaded.sweep.first else point
