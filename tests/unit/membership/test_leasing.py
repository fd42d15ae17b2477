"""Leasing inside one view: same steps and flags for all members, one end, also with a lost coordinator."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.membership.course import Course
from shoal.membership.leasing import (
    LEAST_AHEAD,
    MOST_AHEAD,
    Due,
    End,
    EndKind,
    LastDue,
    Leasing,
    Plan,
    ahead_s,
    beat_s,
    horizon,
)
from shoal.membership.view import View
from shoal.positions import Positions

pytestmark = pytest.mark.unit

PLAN = Plan(
    course=Course(Positions.even(8, 10)),
    virtual_shards=4,
    evaluate_every=4,
    checkpoint_every=5,
    export=True,
    can_evaluate=True,
)
SHARDED = replace(PLAN, snapshot=True)
VIEW = View(3, ("a", "b"))


def flags(end: End) -> tuple[int, bool, bool, bool]:
    return end.step, end.evaluate, end.checkpoint, end.export


@settings(deadline=None)
@given(
    moves=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12), st.integers(1, 4)), max_size=30),
    sharded=st.booleans(),
)
def test_every_member_is_given_every_step_once_in_order_with_the_same_flags(
    moves: list[tuple[str, int, int]], sharded: bool
) -> None:
    leasing = Leasing(VIEW, SHARDED if sharded else PLAN, first_step=3)
    got: dict[str, list[tuple[int, bool, bool, bool]]] = {"a": [], "b": []}
    for member, until, every in [*moves, ("a", 10, 1), ("b", 10, 1)]:
        leasing.extend(until, every)
        got[member] += [(x.step, x.evaluate, x.checkpoint, x.snapshot) for x in leasing.take(member)]
    assert got["a"] == got["b"]
    assert [step for step, *_ in got["a"]] == list(range(3, 11))


def test_flags_follow_the_job() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.extend(10)
    taken = leasing.take("a")
    assert [x.step for x in taken if x.evaluate] == [4, 8]
    # Step 10 is the last: its checkpoint is ordered by the view's end, not by its lease.
    assert [x.step for x in taken if x.checkpoint] == [5]
    assert not any(x.snapshot for x in taken)


def test_snapshots_are_of_the_first_step_of_each_nth_after_it_and_of_checkpoints() -> None:
    leasing = Leasing(
        VIEW, replace(SHARDED, course=Course(Positions.even(8, 20)), checkpoint_every=9), first_step=2
    )  # and one of the last
    leasing.extend(4, 3)
    leasing.extend(20, 3)
    assert [x.step for x in leasing.take("b") if x.snapshot] == [2, 5, 8, 9, 12, 15, 18, 20]


def test_the_budgets_end_evaluates_checkpoints_and_exports() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.extend(9)
    assert leasing.end is None
    leasing.extend(99)
    assert leasing.end is not None
    assert flags(leasing.end) == (10, True, True, True)
    assert leasing.end.kind is EndKind.BUDGET


def test_a_stop_ends_the_view_at_the_first_step_that_nobody_holds() -> None:
    leasing = Leasing(VIEW, SHARDED, first_step=1)
    leasing.extend(4)
    leasing.take("a")
    leasing.stop("because")
    leasing.extend(9)
    assert leasing.end is not None
    assert flags(leasing.end) == (4, False, True, False)
    assert [x.step for x in leasing.take("b")] == [1, 2, 3, 4]
    assert (leasing.end.reason, leasing.end.kind, leasing.end.snapshot) == ("because", EndKind.STOP, True)


def test_a_change_ends_the_view_and_not_the_run() -> None:
    for plan in (PLAN, SHARDED):
        leasing = Leasing(VIEW, plan, first_step=1)
        leasing.extend(4)
        leasing.change("c joins", keepers={"b": "a", "a": "b"})
        leasing.extend(9)
        assert leasing.end is not None
        assert flags(leasing.end) == (4, False, False, False)
        assert (leasing.end.kind, leasing.end.snapshot) == (EndKind.CHANGE, plan.snapshot)
        assert leasing.end.keepers == (("a", "b"), ("b", "a"))


def test_a_change_that_leaves_nobody_with_the_state_makes_it_durable() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.change("all leave", checkpoint=True)
    assert leasing.end is not None
    assert leasing.end.checkpoint


def test_a_stop_wins_over_a_change_unless_somebody_was_told_of_it() -> None:
    leasing = Leasing(VIEW, PLAN, first_step=1)
    leasing.extend(4)
    leasing.change("c joins")
    leasing.stop("because")
    assert leasing.end is not None
    assert leasing.end.kind is EndKind.STOP
    told = Leasing(VIEW, PLAN, first_step=1)
    told.extend(4)
    told.change("c joins")
    told.take("a")
    told.stop("because")
    assert told.end is not None
    assert told.end.kind is EndKind.CHANGE


def test_a_change_never_undoes_an_end() -> None:
    stopped, finished = Leasing(VIEW, PLAN, first_step=1), Leasing(VIEW, PLAN, first_step=1)
    stopped.stop("because")
    finished.extend(10)
    for leasing, kind in ((stopped, EndKind.STOP), (finished, EndKind.BUDGET)):
        leasing.change("c joins")
        leasing.stop("too late")
        assert leasing.end is not None
        assert leasing.end.kind is kind


def test_a_view_with_nothing_left_to_do_ends_at_once_and_owes_what_is_due_at_the_end() -> None:
    leasing = Leasing(VIEW, replace(PLAN, course=Course(Positions.even(8, 2))), first_step=3)
    assert leasing.end is not None
    assert flags(leasing.end) == (2, False, False, True)
    assert leasing.owes == Due(evaluate=True, checkpoint=True)
    assert leasing.take("a") == ()
    known = Leasing(VIEW, replace(PLAN, course=Course(Positions.even(8, 2))), first_step=3, owes=Due(checkpoint=True))
    assert known.owes == Due(checkpoint=True)


@pytest.mark.parametrize(
    ("owes", "step", "last"),
    [
        (None, 6, LastDue(None, None)),
        (Due(evaluate=True), 7, LastDue(6, None)),
        (Due(evaluate=True, checkpoint=True), 8, LastDue(8, 6)),
        (None, 19, LastDue(16, 15)),
        (None, 20, LastDue(20, 20)),
    ],
)
def test_what_was_last_due(owes: Due | None, step: int, last: LastDue) -> None:
    assert (
        Leasing(VIEW, replace(PLAN, course=Course(Positions.even(8, 20))), first_step=7, owes=owes).last_due(step)
        == last
    )


@settings(deadline=None)
@given(given_a=st.integers(0, 10), given_b=st.integers(0, 10), ahead=st.integers(0, 12), seen=st.booleans())
def test_a_successor_goes_on_where_the_lost_coordinator_was(given_a: int, given_b: int, ahead: int, seen: bool) -> None:
    lost = Leasing(VIEW, SHARDED, first_step=1)
    taken = {}
    for member, until in sorted({"a": given_a, "b": given_b}.items(), key=lambda x: x[1]):
        lost.extend(until, 3)
        taken[member] = lost.take(member)
    held = {m: max((x.step for x in leases), default=0) for m, leases in taken.items()}
    ends = [lost.end] if lost.end is not None and seen else []
    successor = Leasing(VIEW, SHARDED, first_step=1)
    successor.resume_at(held, snapshots={x.step for leases in taken.values() for x in leases if x.snapshot}, ends=ends)
    assert successor.leased_until == max(held.values())
    successor.extend(ahead, 2)
    for member in VIEW.members:
        taken[member] += successor.take(member)
    assert [(x.step, x.snapshot) for x in taken["a"]] == [(x.step, x.snapshot) for x in taken["b"]]
    assert [x.step for x in taken["a"]] == list(range(1, max(given_a, given_b, ahead, 0) + 1))[:10]


def test_an_end_that_a_member_was_told_outlives_the_coordinator() -> None:
    lost = Leasing(VIEW, PLAN, first_step=1)
    lost.extend(4)
    lost.change("c joins")
    lost.take("a")
    assert lost.end is not None
    successor = Leasing(VIEW, PLAN, first_step=1)
    successor.resume_at({"a": 4, "b": 2}, ends=[lost.end])
    successor.extend(9)
    successor.stop("because")
    assert successor.end == lost.end
    assert [x.step for x in successor.take("b")] == [3, 4]
    assert successor.take("a") == ()


@settings(deadline=None)
@given(reported=st.integers(0, 10**6), step_s=st.one_of(st.none(), st.floats(1e-6, 1e3)))
def test_the_horizon_is_bounded(reported: int, step_s: float | None) -> None:
    ahead = horizon(reported, step_s, ahead_s=0.75) - reported
    assert LEAST_AHEAD <= ahead <= MOST_AHEAD
    # Whoever reported just now, and is heard again `ahead_s` later, has had work all the time and one step loaded.
    assert step_s is None or ahead == MOST_AHEAD or (ahead - 1) * step_s >= 0.75 + step_s * (1 - 1e-9)


def test_many_members_speak_less_often_and_have_leases_for_as_long() -> None:
    assert [beat_s(n) for n in (1, 8, 200, 400, 1000)] == [0.5, 0.5, 0.5, 1.0, 2.5]
    for n in (1, 200, 1000, 4000):
        assert n / beat_s(n) <= 400.0
        assert horizon(10, 0.1, ahead_s=ahead_s(n)) - 10 >= min(MOST_AHEAD, LEAST_AHEAD + beat_s(n) / 0.1)
