"""What a run has used: through arrivals, deaths, restarts of the coordinator and further launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.coordinator.crew import Hand
from shoal.coordinator.spending import Spending, course_of
from shoal.errors import ConfigError
from shoal.job import Budget, Cost, Data, Job, Workers
from shoal.membership.course import Outlook, SpentCourse
from shoal.membership.messages import Progress, Reading, Reports, StepReport
from shoal.positions import Positions
from shoal.tracking.prices import tariff_of
from tests.support.sabotage import Digits

pytestmark = pytest.mark.unit

WALL = 1_700_000_000.0
"""Unix seconds at second 0 of the clock of these tests."""
ENDLESS = Positions.even(8, 1 << 32)


@dataclass
class Notes:
    """A book of what is written, for one coordinator after another."""

    now: float = 0.0
    entries: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    last: Any = None
    committed: int = 0

    def write(self, kind: str, **values: Any) -> None:
        self.entries.append({"kind": kind, "time": WALL + self.now, **values})

    def say(self, kind: str, text: str) -> None:
        self.said.append(text)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.entries if e["kind"] == kind]


class Clock:
    """One run's account, its workers and their meters, second by second."""

    def __init__(self, cost: Cost, *, watts: float = 10.0) -> None:
        self.cost, self.watts, self.notes = cost, watts, Notes()
        self.hands: dict[str, Any] = {}
        self.meters: dict[str, float] = {}
        self.step = 0
        self.launch()

    def launch(self, *, revived: bool = False) -> None:
        self.spending = Spending(tariff_of(self.cost, Workers(cpus=1)), None)
        if not revived:
            self.hands, self.meters = {}, {}
            self.notes.write("start")
        now = self.notes.now
        self.spending.remember(self.notes.entries, now, WALL + now, revived=revived)

    def hire(self, name: str, **labels: str) -> None:
        facts = SimpleNamespace(labels=labels, reading=Reading(0.0, "rapl"))
        self.hands[name] = Hand(name, None, facts, begun=WALL + self.notes.now)  # type: ignore[arg-type]
        self.meters[name] = 0.0
        self.tend()
        self.spending.begin(self.notes.now)

    def kill(self, name: str) -> None:
        self.spending.lose(name)
        del self.hands[name], self.meters[name]
        self.tend()

    def tend(self) -> None:
        self.spending.tend(self.notes, self.hands, self.notes.now, WALL + self.notes.now)  # type: ignore[arg-type]

    def train(self, seconds: int) -> None:
        """A step a second."""
        for _ in range(seconds):
            self.notes.now += 1.0
            self.step += 1
            for name in self.meters:
                self.meters[name] += self.watts
                report = StepReport(self.step, ((8, 1.0),), 1.0, 0.1, 1.0)
                doing = Progress(self.step, doing="compute")
                said = Reports(name, 1, (report,), progress=doing, reading=Reading(self.meters[name], "rapl"))
                self.spending.hear(said, self.notes.now, entered=True)
            used = self.used()
            self.notes.write("commit", step=self.step, samples=[8 * self.step - 8, 8 * self.step], used=used)
            self.tend()

    def used(self) -> dict[str, float]:
        return self.spending.used(self.notes.now)

    def total(self) -> dict[str, dict[str, float]]:
        return self.spending.conclude(self.notes, self.notes.now, WALL + self.notes.now)["cost"]  # type: ignore[arg-type]


def test_every_worker_is_counted_from_its_start_to_its_end() -> None:
    run = Clock(Cost(per_hour=3600.0))
    run.hire("w0")
    run.train(4)
    run.hire("w1")
    run.train(6)
    assert run.used() == pytest.approx({"seconds": 10.0, "joules": 160.0, "dollars": 16.0})
    run.kill("w1")
    (left,) = run.notes.of("worker")
    assert (left["member"], left["lost"], left["left"] - left["joined"]) == ("w1", True, 6.0)
    assert left["joules"] == {"train": 60.0}
    run.train(2)
    assert run.total()["joules"] == {"train": 180.0}
    assert run.used()["dollars"] == pytest.approx(18.0)


def test_without_a_price_nothing_is_said_of_money() -> None:
    run = Clock(Cost())
    run.hire("w0")
    run.train(3)
    assert set(run.used()) == {"seconds", "joules"}
    assert "dollars" not in run.total()


def test_a_restarted_coordinator_counts_on_without_a_gap_and_nothing_twice() -> None:
    run = Clock(Cost(per_hour=3600.0))
    run.hire("w0")
    run.hire("w1")
    run.train(15)  # the last word of the account in the ledger is of second 10
    before = run.used()
    run.launch(revived=True)
    assert run.used()["seconds"] == before["seconds"]
    assert run.used()["joules"] == before["joules"]  # as the commits say, until the meters are heard
    del run.hands["w1"], run.meters["w1"]  # it died while nobody was there
    run.train(5)
    assert run.notes.of("worker")[-1]["lost"]
    kept = run.total()
    assert kept["joules"]["train"] == 200.0 + 100.0  # w0's whole counter; w1's as far as it was written down
    assert kept["joules"]["lost"] == pytest.approx(10.0 * 6, rel=0.2)  # w1's from then until its death was known
    assert run.used()["seconds"] == 20.0


def test_a_further_launch_goes_on_counting_and_what_it_does_again_is_told_apart() -> None:
    run = Clock(Cost(per_hour=3600.0))
    run.hire("w0")
    run.train(5)
    before = run.used()
    run.notes.now += 1000.0  # nobody pays for that
    run.launch()
    assert run.used() == pytest.approx(before)
    run.step = 3
    run.hire("w0")
    run.spending.view()
    run.train(4)
    total = run.total()
    assert sum(total["joules"].values()) == pytest.approx(before["joules"] + 40.0)
    assert total["joules"]["recompute"] == 20.0  # steps 4 and 5
    assert run.used()["seconds"] == pytest.approx(9.0)


def test_a_budget_of_money_ends_where_the_money_does_as_workers_come_and_go() -> None:
    run, budget = Clock(Cost(per_hour=3600.0)), 60.0
    course = SpentCourse(ENDLESS, budget, after=0, decided={})
    run.hire("w0")
    while course.last is None or run.step < course.last:
        used = run.used()["dollars"]
        course.outlook = Outlook(used, run.step, run.spending.per_step("dollars", 1.0))
        course.decide(run.step + 2)
        run.train(1)
        if run.step == 10:
            run.hire("w1")
        if run.step == 20:
            run.kill("w0")
    assert run.used()["dollars"] == pytest.approx(budget, abs=1.0)
    assert course.progress(run.step) == 1.0


def test_a_node_with_a_wrong_label_costs_what_the_job_says_and_that_is_told_once() -> None:
    run = Clock(Cost(instance="m5.xlarge"))
    for name in ("w0", "w1"):
        run.hire(name, **{"instance-type": "m5.xlarg"})
    assert len(run.notes.said) == 1
    assert 'did you mean "m5.xlarge"' in run.notes.said[0]
    run.train(36)
    assert run.used()["dollars"] == pytest.approx(2 * 36 / 3600 * 0.192 / 4)


def test_the_course_is_what_the_ledger_says_was_decided_in_this_launch_or_committed() -> None:
    job = job_of(Budget(joules=100.0))
    entries = [
        {"kind": "start"},
        {"kind": "course", "decided": [[1, 0.1], [2, 0.2], [3, 1.0]]},
        {"kind": "commit", "step": 1, "progress": 0.1},
    ]
    course = course_of(job, ENDLESS, after=0, entries=entries)
    assert (course.decide(9), course.last) == (3, 3)
    later = course_of(job, ENDLESS, after=0, entries=[*entries, {"kind": "start"}])
    assert later.decide(1) == 1
    assert (later.progress(1), later.last) == (0.1, None)


def job_of(budget: Budget, **parts: Any) -> Job:
    return Job(task=Digits(), data=Data(train="builtin:digits"), budget=budget, **parts)


def test_a_budget_of_money_needs_a_price() -> None:
    with pytest.raises(ConfigError, match=r"budget\.dollars=5, but there is no price; set cost\.per_hour"):
        job_of(Budget(dollars=5.0))
    assert job_of(Budget(dollars=5.0), cost=Cost(instance="g5.xlarge")).budget.spent == "dollars"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"per_hour": 0.0}, r"cost\.per_hour=0\.0 must be more than 0"),
        ({"per_hour": 1.0, "instance": "g5.xlarge"}, r"cost\.per_hour=1 and cost\.instance=g5\.xlarge are both set"),
        ({"market": "spott"}, r'cost\.market=.*did you mean "spot"'),
        ({"watts_per_core": 0}, r"cost\.watts_per_core=0 must be more than 0"),
    ],
)
def test_what_cannot_be_a_price_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cost(**values)
