"""`data.selection` as a value of the job, and what it makes of the job's steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.coordinator.plan import TaskElsewhere
from shoal.data.training import order_digest
from shoal.errors import ConfigError
from shoal.job import Batch, Budget, Data, Job, Selection
from shoal.job.fields import flatten
from shoal.job.overrides import apply
from shoal.job.steps import positions_of, total_steps
from shoal.job.store import job_digest
from shoal.tasks.base import Task

pytestmark = pytest.mark.unit


class Mean(Task):
    def build(self) -> Any:
        return 0

    def loss(self, model: Any, batch: Any) -> Any:
        return 0


@dataclass(frozen=True)
class Telling(Mean):
    def sample_losses(self, model: Any, batch: Any) -> Any:
        return 0


def job(selection: Selection | None = None, *, task: Task | None = None, **parts: Any) -> Job:
    fields: dict[str, Any] = {"batch": Batch(size=16, virtual_shards=4), "budget": Budget(steps=10), **parts}
    return Job(task=task or Telling(), data=Data(train="x", selection=selection), **fields)


def test_set_changed_and_dropped_as_text() -> None:
    plain = job()
    chosen = apply(plain, ["data.selection=Selection(rule='hardest', pool=1.5)"])
    assert chosen.data.selection == Selection(rule="hardest", pool=1.5)
    later = apply(chosen, ["data.selection.until=0.5"])
    assert later.data.selection == Selection(rule="hardest", pool=1.5, until=0.5)
    assert flatten(later)["data.selection.until"] == "0.5"
    assert apply(later, ["data.selection=none"]) == plain
    assert len({job_digest(j) for j in (plain, chosen, later)}) == 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rule": "easiest"}, r"Selection\.rule='easiest'"),
        ({"pool": 1.0}, r"Selection\.pool=1\.0 must be more than 1"),
        ({"pool": float("inf")}, r"Selection\.pool=inf must be a finite number"),
        ({"pool": "2"}, r"Selection\.pool='2' must be a number"),
        ({"floor": 0}, r"Selection\.floor=0 must be more than 0"),
        ({"floor": 1.1}, r"Selection\.floor=1\.1 must lie between"),
        ({"until": 0.0}, r"Selection\.until=0\.0 must be more than 0"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Selection(**fields)


def test_a_task_that_tells_only_the_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Mean tells only the mean; define sample_losses"):
        job(Selection(), task=Mean())
    made = job(Selection())
    elsewhere = replace(made, task=TaskElsewhere(made.task))
    assert elsewhere.task.tells_samples(), "the coordinator's copy of the job says the same"


@pytest.mark.parametrize(("pool", "nearest"), [(1.1, "1.25"), (2.3, "2.25"), (1.0000001, "1.25")])
def test_half_a_candidate_is_refused(pool: float, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"of 4 samples .* candidates, .* choose {nearest}, or"):
        job(Selection(pool=pool))
    assert job(Selection(pool=float(nearest))).data.selection is not None


def test_a_third_is_whole_where_three_are() -> None:
    with pytest.raises(ConfigError, match=r"choose 1\.3333333333333333, or"):
        job(Selection(pool=1.3), batch=Batch(size=12, virtual_shards=4))
    made = job(Selection(pool=4 / 3, until=1.0), batch=Batch(size=12, virtual_shards=4))
    assert positions_of(made, 10).spans == ((1, 16),)


def test_steps_read_the_pool_and_then_the_batch() -> None:
    made = job(Selection(pool=2.5, until=0.8))
    assert positions_of(made, 10).spans == ((1, 40), (9, 16))
    assert positions_of(made, 10).total == 8 * 40 + 2 * 16
    assert positions_of(job(Selection(until=0.01)), 10).spans == ((1, 16),), "too short a run for a step of it"
    assert positions_of(job(Selection(until=1.0)), 10).spans == ((1, 32),)
    assert positions_of(job(), 10).spans == ((1, 16),)


SELECTIONS = st.none() | st.builds(Selection, pool=st.sampled_from([1.25, 1.5, 2.0, 5.0]), until=st.floats(0.01, 1.0))


@given(SELECTIONS, st.integers(1, 5000))
def test_a_budget_of_samples_takes_the_fewest_steps_that_read_them(selection: Selection | None, samples: int) -> None:
    made = job(selection, budget=Budget(samples=samples))
    steps = total_steps(made, 777)
    assert positions_of(made, steps).total >= samples
    assert steps == 1 or positions_of(made, steps - 1).total < samples
    assert total_steps(job(selection, budget=Budget(epochs=2.5)), 40) == total_steps(
        job(selection, budget=Budget(samples=100)), 1
    )
    assert total_steps(job(selection, budget=Budget(steps=7)), 40) == 7


def test_a_cursor_tells_selections_apart() -> None:
    def digest(selection: Selection | None, block: int = 16, total: int = 160) -> str:
        return order_digest(Data(train="x", selection=selection), block=block, total=total)

    assert digest(None) == ""
    told = [digest(Selection()), digest(Selection(floor=0.3)), digest(Selection(), 32), digest(Selection(), total=161)]
    assert len({*told, ""}) == 5
