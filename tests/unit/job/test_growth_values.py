"""Growth of the batch as a value of the job: its text, what is refused, and what each step then reads."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.job import Batch, Budget, ByNoise, Curriculum, Data, Job, Milestones, Selection, Source
from shoal.job.fields import flatten
from shoal.job.overrides import apply
from shoal.job.steps import OPEN, batches_of, positions_of, total_steps
from shoal.job.store import job_digest
from tests.support.engine_tasks import Smooth

pytestmark = pytest.mark.unit

TWICE = Milestones(((0.5, 32), (0.75, 64)))


def job(growth: Any = None, *, budget: Budget | None = None, data: dict[str, Any] | None = None, **batch: Any) -> Job:
    return Job(
        task=Smooth(),
        data=Data(**{"train": "nowhere", **(data or {})}),
        budget=budget or Budget(steps=40),
        batch=Batch(**{"size": 16, "virtual_shards": 8, "growth": growth, **batch}),
    )


@pytest.mark.parametrize("growth", [TWICE, ByNoise(most=256), ByNoise(most=64, every=7, factor=4, threshold=0.5), None])
def test_text_turns_back_into_the_value(growth: Any) -> None:
    made = job(growth)
    texts = flatten(made)
    assert apply(job(), [f"batch.growth={texts['batch.growth']}", *_own(texts)]).batch == made.batch


def _own(texts: dict[str, str]) -> list[str]:
    return [f"{name}={text}" for name, text in texts.items() if name.startswith("batch.growth.")]


def test_a_value_of_the_growth_in_use_can_be_set_by_itself() -> None:
    assert apply(job(TWICE), ["batch.growth.at=0.25:48"]).batch.growth == Milestones(((0.25, 48),))
    assert apply(job(ByNoise(most=64)), ["batch.growth.every=10"]).batch.growth == ByNoise(most=64, every=10)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Milestones(()), "must be pairs of a share of the budget and a batch size"),
        (lambda: Milestones(((0.5, 32), (0.4, 64))), "must rise: its progress are [0.5, 0.4]"),
        (lambda: Milestones(((0.5, 64), (0.7, 32))), "must rise: its sizes are [64, 32]"),
        (lambda: Milestones(((1.0, 64),)), "a progress in Milestones.at=1.0 must lie between 0 and 1 (1 excluded)"),
        (lambda: job(Milestones(((0.5, 16),))), "begins with 16, which is not more than batch.size=16"),
        (lambda: job(Milestones(((0.5, 36),))), "a size of 36, which cannot be split into batch.virtual_shards=8"),
        (lambda: job(TWICE, micro_limit=4), "smaller than one virtual shard of the largest batch (8 of 64 samples)"),
        (lambda: ByNoise(most=64, factor=1), "ByNoise.factor=1 must be at least 2"),
        (lambda: job(ByNoise(most=31)), "leaves batch.size=16 no room to grow; raise ByNoise.most"),
        (lambda: job(lr_rule="square"), "batch.lr_rule='square' is not one of auto, none, linear, sqrt"),
        (lambda: job(lr_base=0), "batch.lr_base=0 must be more than 0"),
        (
            lambda: job(TWICE, budget=Budget(samples=999), data={"selection": Selection(until=0.5)}),
            "go together only with budget.steps",
        ),
        (lambda: job(ByNoise(most=64), data={"selection": Selection()}), "does not go with data.selection"),
        (lambda: job(ByNoise(most=64), data={"curriculum": Curriculum()}), "does not go with data.curriculum"),
        (
            lambda: job(
                ByNoise(most=64), data={"train": "", "sources": (Source(name="a", train="x", weight=((0.0, 1.0),)),)}
            ),
            "does not go with weights of data.sources along progress",
        ),
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        make()


def test_only_what_is_asked_for_counts_in_the_digest() -> None:
    plain = job_digest(job())
    assert job_digest(job(lr_rule="auto")) == plain
    others = [job(lr_rule="none"), job(lr_rule="sqrt"), job(lr_base=8), job(TWICE), job(ByNoise(most=64))]
    grown = [job(TWICE, lr_rule="none"), job(Milestones(((0.5, 32), (0.8, 64)))), job(ByNoise(most=64, every=9))]
    digests = [plain, *map(job_digest, (*others, *grown))]
    assert len(set(digests)) == len(digests)


def test_milestones_change_the_steps_that_a_schedules_jump_changes() -> None:
    assert positions_of(job(TWICE), 40).spans == ((1, 16), (21, 32), (31, 64))
    assert positions_of(job(TWICE), 3).spans == ((1, 16), (2, 32), (3, 64))
    assert positions_of(job(TWICE), 1).spans == ((1, 64),), "the only step ends behind both"
    for steps in (1, 2, 3, 7, 40, 97):
        batches = batches_of(job(TWICE), steps)
        assert [batches.per_step(s) for s in range(1, steps + 1)] == [
            TWICE.size_at(16, s / steps) for s in range(1, steps + 1)
        ]


@settings(deadline=None)
@given(
    samples=st.integers(1, 20_000),
    points=st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True).map(sorted),
    growths=st.lists(st.integers(1, 4), min_size=3, max_size=3),
)
def test_a_budget_of_samples_grows_where_its_samples_say(samples: int, points: list[int], growths: list[int]) -> None:
    sizes, size = [], 16
    for growth in growths:
        size += 8 * growth
        sizes.append(size)
    growth = Milestones(tuple(zip((p / 100 for p in points), sizes, strict=False)))
    made = job(growth, budget=Budget(samples=samples))
    steps = total_steps(made, 0)
    positions = positions_of(made, steps)
    assert positions.total >= samples
    assert steps == 1 or positions_of(made, steps - 1).total < samples
    last = growth.sizes(16)[-1]
    for first, size in positions.spans[1:]:
        begins = positions.before(first - 1) / positions.total
        assert begins == pytest.approx({n: p for p, n in growth.at}[size], abs=2 * last / positions.total)


def test_while_samples_are_selected_every_place_has_its_candidates() -> None:
    made = job(Milestones(((0.5, 32),)), budget=Budget(steps=10), data={"selection": Selection(pool=2.0, until=0.7)})
    assert positions_of(made, 10).spans == ((1, 32), (6, 64), (8, 32))
    assert batches_of(made, 10).spans == ((1, 16), (6, 32))


def test_what_only_the_doing_can_tell_is_open() -> None:
    noise = ByNoise(most=64)
    assert total_steps(job(noise, budget=Budget(epochs=2)), 100) == OPEN
    assert total_steps(job(noise, budget=Budget(steps=7)), 100) == 7
    assert positions_of(job(noise), 40).spans == ((1, 16),)
    assert positions_of(job(TWICE, budget=Budget(seconds=9)), OPEN).spans == ((1, 16),)
