"""The course of a run: which steps there are, and how much of the budget is used when each is done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.membership.course import Course, Outlook, SpentCourse
from shoal.membership.leasing import EndKind, Leasing, Plan
from shoal.membership.view import View
from shoal.positions import Positions

pytestmark = pytest.mark.unit

POSITIONS = Positions(((1, 16), (4, 8)), 6)
ENDLESS = Positions.even(8, 1 << 32)


def spent(budget: float = 10.0, **decided: float) -> SpentCourse:
    return SpentCourse(ENDLESS, budget, after=0, decided={int(k[1:]): v for k, v in decided.items()})


def test_a_budget_of_steps_counts_steps_and_one_of_samples_what_they_read() -> None:
    assert [Course(POSITIONS).progress(s) for s in (0, 3, 6)] == [0.0, 0.5, 1.0]
    by_samples = Course(POSITIONS, by="samples")
    assert [by_samples.progress(s) for s in (0, 3, 6)] == [0.0, 48 / 72, 1.0]
    assert by_samples.of(4) == (48, 56)
    assert by_samples.last == by_samples.expected == 6
    assert by_samples.decide(4) == 4
    assert by_samples.decide(99) == 6


def test_a_step_that_is_leased_takes_its_share_of_the_budget_as_far_as_can_be_foreseen() -> None:
    course = spent()
    assert course.last is None
    assert course.expected == 0
    course.outlook = Outlook(spent=2.0, step=1, per_step=0.5)
    assert course.decide(3) == 3
    assert [course.progress(s) for s in (2, 3)] == [0.25, 0.3]
    assert course.expected == 17  # 8 s are left, at half a second each
    course.outlook = Outlook(spent=9.0, step=3, per_step=1.0)
    assert course.decide(9) == 4
    assert course.progress(4) == 1.0
    assert course.last == 4
    assert course.decide(9) == 4


def test_a_budget_that_ended_while_nobody_trained_still_gets_its_last_step() -> None:
    course = spent()
    course.decide(1)
    course.outlook = Outlook(spent=60.0, step=1, per_step=0.5)
    assert course.decide(5) == 2
    assert course.last == 2


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 20), st.floats(0, 2)), max_size=20), st.integers(1, 40))
def test_what_was_decided_stands_and_never_falls(looks: list[tuple[float, int, float]], most: int) -> None:
    course, told = spent(), {}
    for until, (used, step, per_step) in enumerate(looks, start=1):
        course.outlook = Outlook(used, step, per_step)
        for known in range(1, course.decide(min(most, 2 * until)) + 1):
            assert told.setdefault(known, course.progress(known)) == course.progress(known)
    values = [told[s] for s in sorted(told)]
    assert values == sorted(values)
    assert all(0 <= v <= 1 for v in values)
    assert 1.0 not in values[:-1]
    again = SpentCourse(ENDLESS, 10.0, after=0, decided=told)
    again.outlook = Outlook(spent=5.0)
    assert [again.progress(s) for s in sorted(told)] == values
    assert again.decide(len(told)) == len(told)
    assert again.last == course.last


def test_what_is_decided_is_news_once() -> None:
    course = spent(s1=0.2)
    course.outlook = Outlook(spent=2.0, step=1, per_step=1.0)
    assert course.decide(3) == 3
    assert course.news() == ((2, 0.3), (3, 0.4))
    assert course.news() == ()
    assert Course(POSITIONS).news() == ()


def test_a_restarted_coordinator_goes_on_with_what_members_were_told() -> None:
    course = spent(s1=0.2)
    course.restore([(2, 0.3), (3, 1.0)])
    assert course.decide(9) == 3
    assert course.last == 3


def test_leases_carry_the_progress_and_the_view_ends_with_the_budget() -> None:
    course, view = spent(), View(1, ("a",))
    plan = Plan(course, virtual_shards=4, evaluate_every=2, checkpoint_every=None, export=True, can_evaluate=True)
    leasing = Leasing(view, plan, 1)
    course.outlook = Outlook(spent=0.0, step=0, per_step=3.5)
    leasing.extend(1)
    first = leasing.take("a")[0]
    assert first.progress == (0.0, 0.35)
    assert leasing.end is None
    leasing.extend(9)
    second, third = leasing.take("a")
    assert (second.evaluate, second.progress[1]) == (True, 0.7)
    assert third.progress == (0.7, 1.0)
    assert not third.evaluate
    assert leasing.end is not None
    assert (leasing.end.step, leasing.end.kind) == (3, EndKind.BUDGET)
    assert leasing.end.evaluate
    assert leasing.end.checkpoint
    assert leasing.end.export
    after = Leasing(view, replace(plan, course=SpentCourse(ENDLESS, 10, after=3, decided={3: 1.0})), 4)
    assert after.end is not None
    assert after.end.step == 3
