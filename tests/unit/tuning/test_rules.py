"""Ray Tune's schedulers behind the sweep's rules, without Ray running: who is stopped, also after a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from shoal.tuning import ASHA, Grid, HyperBand, Median, Sweep, choice
from shoal.tuning.ledger import SweepLedger, sweep_folder
from shoal.tuning.meter import Used
from shoal.tuning.orders import Ended, Evaluated, Order
from shoal.tuning.rules import Rule
from shoal.tuning.sweeping import Sweeping
from shoal.tuning.trainable import SAID, from_config, to_config
from shoal.tuning.trials import SweepFacts
from tests.support.runs import digits
from tests.support.sweeps import facts
from tests.unit.tuning.test_sweeping import point

pytestmark = pytest.mark.unit


class Tuned:
    """What a scheduler sees of a trial."""

    def __init__(self, order: Order) -> None:
        self.trial_id = order.name
        self.config = to_config(order)


class Day:
    """One life of a sweep's process."""

    def __init__(self, runs: Path, rule: Any, **changes: Any) -> None:
        self.sweep = Sweep(
            job=digits(), space={"seed": choice(*range(20))}, search=Grid(), stop_early=rule, at_once=99, **changes
        )
        said: SweepFacts = facts(20, first=tuple(self.sweep.first), metric="val/loss", resource=self.sweep.resource)
        self.ledger = SweepLedger(sweep_folder(runs, "s"))
        self.ledger.opened("s", said)
        self.sweeping = Sweeping(self.sweep, runs, self.ledger, lambda row: Used())
        self.ended: list[str] = []
        self.rule = Rule(self.sweeping, lambda run, reason: self.ended.append(run))

    def trial(self) -> Tuned:
        order = self.sweeping.next()
        assert order is not None
        made = Tuned(order)
        self.rule.on_trial_add(None, made)
        return made

    def hears(self, trial: Tuned, step: int, value: float) -> str:
        return self.rule.on_trial_result(None, trial, {SAID: Evaluated(point(step, value))})

    def finished(self, *values: float) -> None:
        """A trial with these values at steps 10, 20, ..."""
        trial = self.trial()
        for number, value in enumerate(values, start=1):
            assert self.hears(trial, 10 * number, value) == TrialScheduler.CONTINUE
        self.sweeping.heard(trial.config["number"], Ended("finished"))
        self.rule.on_trial_complete(None, trial, {})


RULES = [
    ASHA(grace=10, resource="steps", reduction=2),
    Median(grace=10, resource="steps", at_least=2),
    HyperBand(grace=10, resource="steps", reduction=2, brackets=1),
    ASHA(grace=320, resource="samples", reduction=2),
    ASHA(grace=0.9, resource="seconds", reduction=2),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_bad_trial_is_stopped_and_its_run_ended(tmp_path: Path, rule: Any, resumed: bool) -> None:
    day = Day(tmp_path, rule)
    for _ in range(3):
        day.finished(1.0, 0.9, 0.8)
    if resumed:
        day.ledger.close()
        day = Day(tmp_path, rule)
    good, bad = day.trial(), day.trial()
    assert day.hears(good, 10, 0.7) == TrialScheduler.CONTINUE
    assert day.hears(bad, 10, 5.0) == TrialScheduler.CONTINUE, "until its run has ended"
    assert day.ended == [bad.config["run_id"]]
    number = bad.config["number"]
    day.hears(bad, 11, 0.1)
    day.sweeping.heard(number, Ended("interrupted", "its run was stopped"))
    row = day.sweeping.state.rows[number]
    assert (row.status, row.best) == ("stopped-early", 0.1), "what it had is what its own record says"
    assert "val/loss 5 after" in row.reason
    assert set(day.ended) == {bad.config["run_id"]}


def test_a_trial_that_had_finished_before_it_was_to_stop_has_finished(tmp_path: Path) -> None:
    day = Day(tmp_path, ASHA(grace=10, resource="steps", reduction=2))
    day.finished(1.0, 0.9)
    bad = day.trial()
    day.hears(bad, 10, 5.0)
    assert day.ended == [bad.config["run_id"]]
    day.hears(bad, 20, 0.5)
    number = bad.config["number"]
    day.sweeping.heard(number, Ended("finished"))
    row = day.sweeping.state.rows[number]
    assert (row.status, row.reason, row.best) == ("finished", "", 0.5)


def test_a_trial_that_goes_on_another_day_keeps_what_it_was_compared_by(tmp_path: Path) -> None:
    rule = ASHA(grace=10, resource="steps", reduction=2)
    day = Day(tmp_path, rule)
    day.finished(1.0)
    going = day.trial()
    assert day.hears(going, 10, 0.5) == TrialScheduler.CONTINUE
    day.ledger.close()
    day = Day(tmp_path, rule)
    again = day.trial()
    assert again.config["number"] == going.config["number"]
    worse = day.trial()
    day.hears(worse, 10, 0.9)
    assert day.ended == [worse.config["run_id"]], "worse than the 0.5 of the day before"


def test_values_that_are_not_finite_end_a_trial(tmp_path: Path) -> None:
    day = Day(tmp_path, ASHA(grace=100, resource="steps"))
    trial = day.trial()
    day.hears(trial, 10, math.nan)
    assert day.ended == [trial.config["run_id"]]
    assert day.sweeping.why(0) == "val/loss is nan"


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_yardstick_is_never_stopped(tmp_path: Path, rule: Any) -> None:
    day = Day(tmp_path, rule, first=({"seed": 7},))
    yardstick, *others = [day.trial() for _ in range(4)]
    for other in others:
        day.hears(other, 10, 0.5)
    for step in (10, 20, 30):
        assert day.hears(yardstick, step, 9.0) == TrialScheduler.CONTINUE
    assert day.ended == []


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_another_day_may_judge_otherwise(tmp_path: Path, rule: Any) -> None:
    """Trials that went on side by side are told one after another after a resume: what is over stays as it was."""
    day = Day(tmp_path, rule)
    trials = [day.trial() for _ in range(4)]
    for step, value in ((10, 5.0), (20, 4.0), (30, 3.0)):
        for number, trial in enumerate(reversed(trials)):  # the worst one first, when there is nothing to compare with
            day.hears(trial, step, value - number)
    for number in range(4):
        day.sweeping.heard(number, Ended("finished"))
    day.ledger.close()
    day = Day(tmp_path, rule)
    day.finished(0.1, 0.1)
    assert [row.status for row in day.sweeping.state.rows] == ["finished"] * 5


def test_an_order_survives_tunes_configuration() -> None:
    order = Order(number=3, name="s-03", run_id="s-03", fields={"a.b": 1}, after=5, used=Used(seconds=2.0, joules=3.0))
    assert from_config(to_config(order)) == order
