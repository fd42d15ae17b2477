"""A sweep's course without Ray: what is tried next, what its ledger says, and how it goes on after any end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.tuning import TPE, Grid, Limit, Random, Sweep, choice, loguniform, uniform
from shoal.tuning.ledger import FILE, SweepLedger, sweep_folder
from shoal.tuning.meter import Meter, Used
from shoal.tuning.orders import Ended, Evaluated, Order, Started
from shoal.tuning.sweeping import Sweeping
from shoal.tuning.trials import Point, SweepFacts, SweepState, read
from tests.support.ledgers import commit, evaluation
from tests.support.runs import digits

pytestmark = pytest.mark.unit

FACTS = SweepFacts(
    job="digits", recipe="lr.py", base="", base_digest="d", base_fields={}, space=(), metric="val/loss", mode="min",
    search="Random()", stop_early=None, resource="samples", rungs=(), objectives=(), trials=3, at_once=2, workers=2,
    budget={},
)  # fmt: skip
RATES = {"optimizer.lr": loguniform(1e-4, 1e-1)}


def point(step: int, value: float, **more: Any) -> Point:
    return Point(
        value=value, metrics={"val/loss": value}, step=step, samples=32 * step, seconds=step / 10,
        worker_seconds=step / 10, **more,
    )  # fmt: skip


class Sweeps:
    """Opens the same sweep again and again, as processes would."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._open: SweepLedger | None = None

    def opened(self, **changes: Any) -> Sweeping:
        sweep = Sweep(**{"job": digits(), "space": RATES, "trials": 3, **changes})
        self.killed()
        self._open = SweepLedger(sweep_folder(self.runs, "s"))
        self._open.opened("s", FACTS)
        return Sweeping(sweep, self.runs, self._open, lambda row: Used())

    def killed(self) -> None:
        if self._open is not None:
            self._open.close()


@pytest.fixture
def sweeps(tmp_path: Path) -> Sweeps:
    return Sweeps(tmp_path)


def lived(sweeping: Sweeping, order: Order | None, *values: float, end: Ended | None = None) -> int:
    """The trial of `order` says all this."""
    assert order is not None
    sweeping.heard(order.number, Started(order.run_id, "folder", 12))
    for step, value in enumerate(values, start=order.after + 1):
        sweeping.heard(order.number, Evaluated(point(step, value)))
    if end is not None:
        sweeping.heard(order.number, end)
    return order.number


def test_trials_one_after_another(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened()
    first, second = sweeping.next(), sweeping.next()
    assert not sweeping.room, "two train at once"
    lived(sweeping, first, 3.0, 2.0, 2.5, end=Ended("finished"))
    assert sweeping.room
    lived(sweeping, second, 4.0)
    third = sweeping.next()
    assert sweeping.next() is None
    lived(sweeping, third, math.nan, end=Ended("failed", "Traceback ...\nValueError: no"))
    sweeping.ended(1, "stopped-early", "too bad")
    state = sweeping.finish()
    assert (state.status, state.best and state.best.number, state.best and state.best.best) == ("finished", 0, 2.0)
    assert [(r.status, r.metric) for r in state.rows[:2]] == [("finished", 2.5), ("stopped-early", 4.0)]
    assert state.rows[2].reason == "Traceback ...\nValueError: no"
    assert state.counts == {
        "running": 0, "finished": 1, "stopped-early": 1, "failed": 1, "interrupted": 0, "waiting": 0,
    }  # fmt: skip
    assert state.spent("dollars") is None
    assert state.spent("worker_seconds") == pytest.approx(0.5)
    kept = read(sweep_folder(sweeps.runs, "s") / FILE)
    assert repr(kept) == repr(state), "the file says all that the process knows"  # NaN is not equal to itself


def test_after_a_kill_unfinished_trials_go_on_first(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened()
    before = [sweeping.next(), sweeping.next()]
    lived(sweeping, before[0], 3.0, end=Ended("finished"))
    lived(sweeping, before[1], 4.0, 3.5)
    again = sweeps.opened()
    order = again.next()
    assert order is not None
    assert before[1] is not None
    assert (order.number, order.run_id, order.fields, order.after) == (1, before[1].run_id, before[1].fields, 2)
    lived(again, order, 3.0, end=Ended("finished"))
    last = lived(again, again.next(), 1.0, end=Ended("finished"))
    assert (last, again.next()) == (2, None)
    assert [p.value for p in again.finish().rows[1].curve] == [4.0, 3.5, 3.0]


@given(ends=st.lists(st.integers(0, 12), max_size=4), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sweep_that_is_killed_anywhere_tries_the_same_points(
    tmp_path_factory: pytest.TempPathFactory, ends: list[int], seed: int
) -> None:
    def tried(kills: list[int]) -> SweepState:
        sweeps = Sweeps(tmp_path_factory.mktemp("runs"))
        for budget in [*kills, 1000]:
            sweeping, left = sweeps.opened(search=Random(seed=seed), trials=5), budget
            while left > 0 and (order := sweeping.next()) is not None:
                lived(sweeping, order, *([2.0] * max(0, min(left, 3) - order.after)))
                left -= 3
                if left > 0:
                    sweeping.heard(order.number, Ended("finished"))
            if left > 0:
                return sweeping.finish()
        raise AssertionError("the last one has budget enough")

    undisturbed, disturbed = tried([]), tried(ends)
    assert [r.fields for r in disturbed.rows] == [r.fields for r in undisturbed.rows]
    assert all(r.status == "finished" for r in disturbed.rows)


def test_more_trials_and_a_wider_space(sweeps: Sweeps) -> None:
    """Trials that lie outside of the space as it is now do not count, and are not continued."""
    narrow = sweeps.opened(space={"optimizer.lr": choice(0.1, 0.2)}, search=Grid())
    lived(narrow, narrow.next(), 3.0, end=Ended("finished"))
    lived(narrow, narrow.next(), 2.0)
    wide = sweeps.opened(space={"optimizer.lr": choice(0.1, 0.3, 0.4)}, search=Grid())
    assert wide.state.rows[1].status == "interrupted"
    assert wide.left == 2
    fields = [lived(wide, o, 1.0, end=Ended("finished")) and o.fields for _ in range(2) if (o := wide.next())]
    assert fields == [{"optimizer.lr": 0.3}, {"optimizer.lr": 0.4}]
    assert wide.next() is None


def test_points_that_are_asked_for_come_first_and_are_the_yardstick(sweeps: Sweeps) -> None:
    told: dict[str, Any] = {"space": {"optimizer.lr": choice(0.1, 0.2, 0.3)}, "first": ({"optimizer.lr": 0.3},)}
    sweeping = sweeps.opened(**told, search=Grid())
    fields = [order.fields for _ in range(3) if (order := sweeping.next()) is not None]
    assert [f["optimizer.lr"] for f in fields] == [0.3, 0.1, 0.2]
    for number, value in enumerate((2.0, 1.0, 3.0)):
        sweeping.heard(number, Evaluated(point(1, value)))
    sweeping.state.facts = replace(FACTS, first=told["first"])
    best, yardstick = sweeping.state.best, sweeping.state.yardstick
    assert best is not None
    assert yardstick is not None
    assert (best.number, yardstick.number) == (1, 0)


def test_one_failed_trial_ends_nothing_but_all_of_the_first_do(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened(trials=5)
    lived(sweeping, sweeping.next(), end=Ended("failed", "a\nValueError: x"))
    lived(sweeping, sweeping.next(), end=Ended("failed", "b\nValueError: x"))
    assert sweeping.closing is None
    lived(sweeping, sweeping.next(), end=Ended("failed", "c\nValueError: x"))
    assert sweeping.closing is not None
    assert sweeping.next() is None
    state = sweeping.finish()
    assert state.status == "failed"
    assert "all 3 trials so far failed with the same error: a\nValueError: x" in state.reason


def test_different_errors_or_one_good_trial_go_on(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened(trials=9)
    for error in ("x", "y", "x"):
        lived(sweeping, sweeping.next(), end=Ended("failed", error))
    assert sweeping.closing is None


def test_a_metric_that_is_never_reported(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened(metric="val/lose")
    lived(sweeping, sweeping.next(), 1.0)
    assert sweeping.closing is not None
    assert "no val/lose is reported; the evaluation of s-00 has val/loss" in sweeping.closing.reason
    assert sweeping.finish().status == "failed"


def test_a_resource_that_runs_do_not_tell(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened(budget=Limit(dollars=3))
    lived(sweeping, sweeping.next(), 1.0)
    assert sweeping.closing is not None
    assert "counts dollars" in sweeping.closing.reason


def test_the_sweeps_own_budget(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened(budget=Limit(joules=100))
    order = sweeping.next()
    assert order is not None
    sweeping.heard(order.number, Evaluated(point(1, 2.0, joules=60.0)))
    sweeping.look_at_budget()
    assert sweeping.closing is None
    sweeping.heard(order.number, Evaluated(point(2, 2.0, joules=101.0)))
    sweeping.look_at_budget()
    sweeping.heard(order.number, Ended("interrupted", "stopped by its sweep"))
    state = sweeping.finish()
    assert (state.status, state.rows[0].status) == ("finished", "interrupted")
    assert state.rows[0].reason == state.reason == "the sweep's budget of 100 joules is used up"


def test_stopped_by_the_user(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened()
    lived(sweeping, sweeping.next(), 1.0)
    sweeping.close("stopped by SIGINT", by_user=True)
    assert (sweeping.next(), sweeping.finish().status) == (None, "stopped")
    assert sweeping.state.rows[0].status == "interrupted"


def test_two_sweeps_of_one_name_at_the_same_time(sweeps: Sweeps) -> None:
    sweeps.opened()
    with pytest.raises(ConfigError, match="sweep s is being run by another process"):
        SweepLedger(sweep_folder(sweeps.runs, "s"))


def test_a_trial_begins_anew_where_there_was_no_checkpoint(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened()
    order = sweeping.next()
    assert order is not None
    sweeping.heard(0, Started("s-00-2", "elsewhere", 12))
    row = sweeping.state.rows[0]
    assert (row.run_id, row.folder, row.runs, row.total_steps) == ("s-00-2", "elsewhere", ["s-00", "s-00-2"], 12)


def test_a_fork_keeps_its_number_and_its_past(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened()
    lived(sweeping, sweeping.next(), 1.0, 0.9)
    lived(sweeping, sweeping.next(), 4.0, 3.9)
    order = sweeping.forked(1, 0, {"optimizer.lr": 0.05})
    assert (order.run_id, order.fork_from, order.used.seconds) == ("s-01-2", "s-00", 0.2)
    sweeping.heard(1, Evaluated(point(3, 0.8)))
    row = sweeping.state.rows[1]
    assert (row.parent, row.fields, row.best, row.runs) == (0, {"optimizer.lr": 0.05}, 0.8, ["s-01", "s-01-2"])


def test_names_of_runs_that_exist_are_left_alone(sweeps: Sweeps) -> None:
    (sweeps.runs / "s-00").mkdir()
    order = sweeps.opened().next()
    assert order is not None
    assert (order.name, order.run_id) == ("s-00", "s-00-again")


# Search ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def optuna() -> Any:
    return pytest.importorskip("optuna")


@pytest.mark.usefixtures("optuna")
def test_tpe_finds_what_random_search_rarely_does(sweeps: Sweeps) -> None:
    def loss(order: Order) -> float:
        return abs(math.log10(float(order.fields["optimizer.lr"] or 0)) + 2.5) + float(order.fields["seed"] or 0) / 9

    space = {**RATES, "seed": choice(0, 1, 2)}
    sweeping = sweeps.opened(space=space, search=TPE(seed=1, startup=6), trials=24)
    while (order := sweeping.next()) is not None:
        lived(sweeping, order, loss(order), end=Ended("finished"))
    losses = [row.best for row in sweeping.state.rows]
    assert sum(losses[12:]) / 12 < 0.7 * sum(losses[:6]) / 6  # type: ignore[arg-type]
    assert sweeping.state.best is not None
    assert sweeping.state.best.fields["seed"] == 0


@pytest.mark.usefixtures("optuna")
def test_tpe_proposes_the_same_after_a_resume(sweeps: Sweeps) -> None:
    """A proposal depends on the ledger only: on finished, failed, stopped and interrupted trials alike."""
    space = {"optimizer.lr": uniform(0.1, 1.0)}
    first = sweeps.opened(space=space, search=TPE(startup=2), trials=6)
    ends = [Ended("finished"), Ended("failed", "x"), Ended("stopped-early", "y")]
    for number, end in enumerate(ends):
        lived(first, first.next(), 1.0 + number, end=end)
    lived(first, first.next(), 2.0)
    fifth = first.next()
    assert fifth is not None
    again = sweeps.opened(space=space, search=TPE(startup=2), trials=6)
    orders = [again.next(), again.next(), again.next()]
    assert [o.number for o in orders if o] == [3, 4, 5]
    assert orders[1] is not None
    assert orders[1].fields == fifth.fields


@pytest.mark.usefixtures("optuna")
def test_tpe_weighs_several_objectives(sweeps: Sweeps) -> None:
    sweeping = sweeps.opened(search=TPE(startup=2), objectives=("val/loss", "cost"), trials=5)
    while (order := sweeping.next()) is not None:
        lived(sweeping, order, 1.0, end=Ended("finished"))
    assert len(sweeping.state.rows) == 5


# What runs say --------------------------------------------------------------------------------------------------------


def reader(entries: list[dict[str, Any]], **changes: Any) -> Callable[[], list[Point]]:
    meter = Meter(Path("none"), "val/loss", **changes)
    return lambda: meter.add(entries)


def test_evaluations_with_what_was_used() -> None:
    entries = [commit(1, 1.0, workers=2), commit(2, 2.0, workers=1), evaluation(2, 2.1)]
    (found,) = reader(entries)()
    steps = [e["step_s"] for e in entries[:2]]
    assert (found.step, found.samples, found.joules) == (2, 128, None)
    assert found.seconds == pytest.approx(sum(steps))
    assert found.worker_seconds == pytest.approx(2 * steps[0] + steps[1])
    assert found.value == found.metrics["val/loss"]


def test_used_sums_of_commits_count_from_what_earlier_runs_used() -> None:
    entries = [
        {**commit(1, 1.0), "used": {"seconds": 2.0, "joules": 5.0}},
        {"kind": "resume", "time": 2.0, "from_step": 0},
        {**commit(1, 3.0), "used": {"seconds": 4.0, "joules": 9.0}},
        evaluation(1, 3.1),
    ]
    (found,) = reader(entries, before=Used(seconds=10.0, joules=1.0))()
    assert (found.seconds, found.joules, found.dollars) == (14.0, 10.0, None)


def test_known_evaluations_are_not_told_again() -> None:
    entries = [commit(1, 1.0), evaluation(1, 1.1), commit(2, 2.0), evaluation(2, 2.1)]
    assert [p.step for p in reader(entries, after=1)()] == [2]
