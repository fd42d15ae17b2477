"""Leasing inside one view: same steps for all members, flags where the job says, one end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.membership.leasing import LEAST_AHEAD, MOST_AHEAD, Leasing, Plan, horizon
from shoal.membership.view import View

pytestmark = pytest.mark.unit

PLAN = Plan(
    batch_size=8,
    virtual_shards=4,
    total_steps=10,
    evaluate_every=4,
    checkpoint_every=5,
    export=True,
    can_evaluate=True,
)
VIEW = View(3, ("a", "b"))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12)), max_size=30))
def test_every_member_is_given_every_step_once_in_order(moves: list[tuple[str, int]]) -> None:
    leasing = Leasing(VIEW, PLAN, first_step=3)
    got: dict[str, list[int]] = {"a": [], "b": []}
    for member, until in moves:
        leasing.extend(until)
        got[member] += [x.step for x in leasing.take(member)]
    leasing.extend(PLAN.total_steps)
    for member in VIEW.members:
        got[member] += [x.step for x in leasing.take(member)]
        assert got[member] == list(range(3, 11))


def test_flags_follow_the_job_and_are_equal_for_all_members() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.extend(10)
    a, b = leasing.take("a"), leasing.take("b")
    assert [(x.step, x.evaluate, x.checkpoint) for x in a] == [(x.step, x.evaluate, x.checkpoint) for x in b]
    assert [x.step for x in a if x.evaluate] == [4, 8]
    # Step 10 is the last: its checkpoint is ordered by the view's end, not by its lease.
    assert [x.step for x in a if x.checkpoint] == [5]


def test_the_budgets_end_evaluates_checkpoints_and_exports() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.extend(9)
    assert leasing.end is None
    leasing.extend(99)
    assert leasing.end is not None
    assert (leasing.end.step, leasing.end.evaluate, leasing.end.checkpoint, leasing.end.export) == (
        10,
        True,
        True,
        True,
    )


def test_a_stop_ends_the_view_at_the_first_step_that_nobody_holds() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.extend(4)
    leasing.take("a")
    leasing.stop("because")
    leasing.extend(9)
    assert leasing.end is not None
    assert (leasing.end.step, leasing.end.evaluate, leasing.end.checkpoint, leasing.end.export) == (
        4,
        False,
        True,
        False,
    )
    assert [x.step for x in leasing.take("b")] == [1, 2, 3, 4]
    assert leasing.end.reason == "because"


def test_a_stop_after_the_end_is_known_changes_nothing() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.extend(10)
    leasing.stop("too late")
    assert leasing.end is not None
    assert leasing.end.export


def test_nothing_to_do_ends_at_once() -> None:
    leasing = Leasing(VIEW, replace(PLAN, total_steps=2), first_step=3)
    assert leasing.end is not None
    assert leasing.end.step == 2
    assert leasing.take("a") == ()


@given(reported=st.integers(0, 10**6), step_s=st.one_of(st.none(), st.floats(1e-6, 1e3)))
def test_the_horizon_is_bounded(reported: int, step_s: float | None) -> None:
    assert LEAST_AHEAD <= horizon(reported, step_s, ahead_s=1.0) - reported <= MOST_AHEAD
