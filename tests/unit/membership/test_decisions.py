"""What comes next, with its reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.membership.decisions import (
    HASTE_S,
    TO_BOUNDARY,
    Change,
    Conclude,
    Form,
    Situation,
    Standing,
    Wait,
    change_wanted,
    left_s,
    next_view,
)
from shoal.membership.losses import Fail, Recover
from shoal.membership.messages import Fresh, InMemory, Stored
from shoal.membership.recovery import Choice, Remembered
from shoal.membership.view import View

pytestmark = pytest.mark.unit

FRESH = Choice(Fresh(), "from the initial weights")


def ready(
    *members: str, leaving: str = "", stays_s: float = 0.0, speeds: dict[str, float] | None = None
) -> tuple[Standing, ...]:
    return tuple(
        Standing(m, m, "drain notice" if m in leaving else None, stays_s, (speeds or {}).get(m)) for m in members
    )


def in_memory(step: int, **holders: str) -> Choice:
    parts = tuple((owner, tuple(who)) for owner, who in holders.items())
    return Choice(Remembered(step, 1, True, parts), f"step {step} is in memory")


def at(**facts: Any) -> Situation:
    usual: dict[str, Any] = {
        "ready": ready("a", "b"),
        "starting": 0,
        "min": 2,
        "max": 4,
        "last": None,
        "choice": FRESH,
        "step": 0,
        "total_steps": 1000,
        "virtual_shards": 8,
    }
    return Situation(**{**usual, **facts})


def form(**facts: Any) -> Form:
    decision = next_view(at(**facts))
    assert isinstance(decision, Form), decision
    return decision


# Between views -------------------------------------------------------------------------------------------------------


def test_a_run_begins_with_all_that_are_ready_up_to_max() -> None:
    assert form(ready=ready("c", "a", "b")).members == ("c", "a", "b")
    assert form(ready=ready(*"edcba"), max=4).members == ("e", "d", "c", "b")


def test_the_rest_that_have_a_place_are_waited_for_at_the_beginning_only() -> None:
    waits = next_view(at(settled=False, starting=1))
    assert waits == Wait("2 of up to 4 workers are ready, 1 are starting")
    assert isinstance(next_view(at(settled=False, starting=0)), Form)
    assert isinstance(next_view(at(settled=True, starting=1)), Form)


def test_fewer_than_min_wait_and_say_so() -> None:
    waits = next_view(at(ready=ready("a"), starting=1))
    assert isinstance(waits, Wait)
    assert "1 of at least workers.min=2 workers are ready, 1 are starting" in waits.reason


def test_survivors_keep_their_order_and_newcomers_follow() -> None:
    found = form(
        ready=ready("x", "c", "a", "b", "y"),
        last=View(1, ("a", "b", "d", "c")),
        choice=in_memory(7, a="a", d="b"),
        max=9,
    )
    assert found.members[:3] == ("a", "b", "c")
    assert found.source == InMemory(7, (("a", ("a",)), ("b", ("d",))), 1)


def test_a_newcomer_that_would_not_make_it_faster_is_a_spare_by_name() -> None:
    found = form(ready=ready(*"abcde"), max=5)
    assert (found.members, found.spares) == (("a", "b", "c", "d"), ("e",))
    assert "spare: e (more would not be faster)" in found.reason


def test_several_newcomers_that_help_together_all_join() -> None:
    last = View(1, tuple("abcd"))
    assert form(ready=ready(*"abcdefgh"), max=8, last=last).members == tuple("abcdefgh")
    assert form(ready=ready(*"abcdefg"), max=8, last=last).members == tuple("abcd")


def test_min_counts_before_what_helps_and_survivors_stay() -> None:
    assert form(ready=ready(*"abcde"), min=5, max=5).members == tuple("abcde")
    assert form(ready=ready(*"abcdefg"), max=8, last=View(1, tuple("abcdefgh"))).members == tuple("abcdefg")


def test_never_more_members_than_virtual_shards() -> None:
    assert form(ready=ready(*"abcde"), max=9, min=1, virtual_shards=3).members == ("a", "b", "c")


def test_the_newest_are_surplus_when_max_is_lowered() -> None:
    found = form(ready=ready(*"abcd"), max=2, last=View(1, tuple("dcba")), choice=in_memory(7, d="d"))
    assert (found.members, found.spares) == (("d", "c"), ("a", "b"))
    assert "(workers.max=2)" in found.reason


def test_leavers_take_part_no_more_unless_they_alone_hold_a_part() -> None:
    last = View(1, ("a", "b", "c"))
    stays = in_memory(7, a="a", b="ba", c="cb")
    gone = form(ready=ready("a", "b", "c", leaving="c"), last=last, choice=stays)
    assert gone.members == ("a", "b")
    needed = form(ready=ready("a", "b", "c", leaving="c"), last=last, choice=in_memory(7, a="a", b="ba", c="c"))
    assert needed.members == ("a", "b", "c")
    assert "c stays for one view more, to hand over the state" in needed.reason


def test_a_holder_takes_a_newcomers_place_rather_than_exceed_max() -> None:
    found = form(
        ready=ready("a", "b", "x", leaving="b"), max=2, last=View(1, ("a", "b")), choice=in_memory(7, a="a", b="b")
    )
    assert found.members == ("a", "b")


def test_leavers_that_would_take_the_state_with_them_first_save_it() -> None:
    last, state = View(1, ("a", "b")), in_memory(7, a="a", b="ab")
    alone = form(ready=ready("b", leaving="b"), last=last, choice=in_memory(7, a="b", b="b"))
    assert alone.members == ("b",)
    assert isinstance(next_view(at(ready=ready("b", leaving="b"), last=last, choice=state, saved=True)), Wait)
    assert isinstance(next_view(at(ready=ready("a", "b", leaving="b"), last=last, choice=state)), Wait)


def test_a_loss_that_may_not_be_borne_ends_the_run() -> None:
    assert next_view(at(verdict=Fail("boom"), stop="asked")) == Conclude("failed", "boom")


def test_a_loss_that_may_be_borne_is_the_reason_for_what_follows() -> None:
    found = form(verdict=Recover("worker lost: c; no limit", 1), last=View(1, ("a", "b", "c")))
    assert found.reason == "worker lost: c; no limit; from the initial weights"


def test_steps_that_are_run_again_are_told() -> None:
    assert "steps 3 to 9 are run again" in form(choice=Choice(Stored(2, "x"), "from", again=(3, 9))).reason


def test_the_budget_is_used_up() -> None:
    assert next_view(at(finished=True)) == Conclude("finished", "the budget is used up")


def test_without_any_state_the_run_fails() -> None:
    decision = next_view(at(choice=None))
    assert isinstance(decision, Conclude)
    assert decision.status == "failed"


def test_a_stop_saves_what_lies_in_memory_only_also_below_min() -> None:
    last, state = View(1, ("a", "b")), in_memory(7, a="a", b="a")
    assert form(stop="asked", ready=ready("a"), last=last, choice=state).members == ("a",)
    for facts in ({"saved": True, "choice": state}, {"choice": FRESH}, {"choice": in_memory(0, a="a")}):
        assert next_view(at(stop="asked", last=last, **facts)) == Conclude("stopped", "asked")


def test_slow_members_get_fewer_shards_if_speeds_are_told() -> None:
    assert form().cuts is None
    assert form(ready=ready("a", "b", speeds={"a": 1.0, "b": 3.0})).cuts == (0, 2, 8)


# While a view runs ---------------------------------------------------------------------------------------------------


def change(**facts: Any) -> Change | None:
    usual: dict[str, Any] = {"last": View(3, ("a", "b")), "choice": None, "step": 10, "step_s": 0.5}
    return change_wanted(at(**{**usual, **facts}))


def test_nothing_new_changes_nothing() -> None:
    assert change() is None


def test_a_newcomer_joins_if_it_saves_more_than_the_change_costs() -> None:
    found = change(ready=ready("a", "b", "c", "d"), total_steps=1000)
    assert found is not None
    assert (found.joins, found.leaves, found.checkpoint) == (("c", "d"), (), False)
    assert "saves about 248s of the 495s that are left" in found.reason


def test_a_change_that_does_not_pay_is_not_made() -> None:
    newcomers = ready("a", "b", "c", "d")
    assert change(ready=newcomers, total_steps=17, resize_cost_s=1.0) is None  # saves 1.75 s
    assert change(ready=newcomers, total_steps=20, resize_cost_s=1.0) is not None  # saves 2.5 s
    assert change(ready=newcomers, total_steps=20, resize_cost_s=9.0) is None
    assert change(ready=newcomers, step_s=None) is None  # nobody knows yet what a step costs
    assert change(ready=ready(*"abcde"), last=View(3, tuple("abcd")), max=9) is None  # a spare


def test_below_min_a_newcomer_always_joins() -> None:
    found = change(ready=ready("a", "b", "c"), min=3, total_steps=11, step_s=None)
    assert found is not None
    assert found.joins == ("c",)


def test_a_leave_is_always_honoured_and_newcomers_come_along() -> None:
    found = change(ready=ready("a", "b", "c", leaving="a"), step_s=None)
    assert found is not None
    assert (found.joins, found.leaves, found.checkpoint) == (("c",), ("a",), False)
    assert "a (drain notice)" in found.reason


def test_who_may_still_stay_trains_until_others_can_take_its_place() -> None:
    last = View(3, ("a", "b"))

    def wanted(members: str, stays_s: float, **more: Any) -> Change | None:
        return change(ready=ready(*members, leaving="ab", stays_s=stays_s), last=last, step_s=None, **more)

    assert wanted("ab", HASTE_S + 2) is None
    assert wanted("abc", HASTE_S + 2) is None, "one of two would have nobody in its place"
    replaced, pressed = wanted("abcd", HASTE_S + 2), wanted("abc", HASTE_S + 1)
    assert replaced is not None
    assert (replaced.joins, replaced.leaves) == (("c", "d"), ("a", "b"))
    assert pressed is not None
    assert (pressed.joins, pressed.leaves) == (("c",), ("a", "b"))
    lowered = wanted("abc", HASTE_S + 2, max=1)
    assert lowered is not None, "fewer are wanted anyway"


def test_a_deadline_is_read_by_the_clock_that_is_furthest_ahead() -> None:
    """A notice is a time of day, set by some node's clock; these need not agree. Too soon is better than too late."""
    here, hour = 1_000_000.0, 3600.0
    assert left_s(here + 30, here) == 30
    assert left_s(here + hour + 30, here, here + hour) == 30, "set on a node whose clock is fast"
    assert left_s(here - hour + 30, here, here - hour) == 0, "set on one whose clock is slow: it leaves at once"
    assert left_s(here + 30, here, here + hour) == 0, "set here, for a node whose clock is fast"
    assert left_s(here + 30, here, here - hour) == 30


def test_it_leaves_the_sooner_the_longer_leaving_takes() -> None:
    def waits(stays_s: float, **costs: float) -> bool:
        found = ready("a", "b", leaving="a", stays_s=stays_s)
        return change(ready=found, last=View(3, ("a", "b")), **costs) is None

    assert waits(HASTE_S + 6.5, resize_cost_s=6.0, step_s=0.1)
    assert not waits(HASTE_S + 5.5, resize_cost_s=6.0, step_s=0.1)
    assert waits(HASTE_S + 1.5 + 4 * TO_BOUNDARY, resize_cost_s=1.0, step_s=4.0)
    assert not waits(HASTE_S + 4 * TO_BOUNDARY, resize_cost_s=1.0, step_s=4.0)


def test_if_all_leave_the_state_becomes_durable_unless_newcomers_take_it_over() -> None:
    found = change(ready=ready("a", "b", leaving="ab"))
    assert found is not None
    assert (found.leaves, found.checkpoint) == (("a", "b"), True)
    replaced = change(ready=ready("a", "b", "c", "d", leaving="ab"))
    assert replaced is not None
    assert (replaced.joins, replaced.checkpoint) == (("c", "d"), False)


def test_a_lowered_max_lets_the_newest_leave() -> None:
    found = change(max=1, min=1)
    assert found is not None
    assert found.leaves == ("b",)
    assert "more than workers.max=1" in found.reason


def test_another_division_must_pay_and_does_not_come_back() -> None:
    speeds = {"a": 1.0, "b": 3.0}
    found = change(ready=ready("a", "b", speeds=speeds))
    assert found is not None
    assert "another division" in found.reason
    divided = View(4, ("a", "b"), form(ready=ready("a", "b", speeds=speeds)).cuts)
    assert change(ready=ready("a", "b", speeds=speeds), last=divided) is None
    assert change(ready=ready("a", "b"), last=divided) is None  # not measured yet in this view


@settings(deadline=None)
@given(
    old=st.integers(1, 6),
    new=st.integers(0, 4),
    gone=st.integers(0, 63),
    low=st.integers(1, 4),
    more=st.integers(0, 4),
    shards=st.integers(1, 12),
)
def test_a_change_leads_to_a_view_that_wants_no_other(
    old: int, new: int, gone: int, low: int, more: int, shards: int
) -> None:
    members = tuple(f"w{i}" for i in range(min(old, shards)))
    workers = tuple(
        Standing(f"w{i}", leaving="asked" if i < len(members) and gone >> i & 1 else None) for i in range(old + new)
    )
    facts: dict[str, Any] = {"min": low, "max": low + more, "virtual_shards": shards, "ready": workers, "saved": True}
    wanted = change(last=View(1, members), **facts)
    if wanted is None:
        return
    holders = {m: m for m in members if m not in wanted.leaves} or {members[0]: members[0]}
    parts = tuple((m, tuple(s.member for s in workers)) for m in holders)
    following = next_view(at(last=View(1, members), choice=Choice(Remembered(5, 1, True, parts), ""), **facts))
    if isinstance(following, Form):
        assert set(following.members) == (set(members) - set(wanted.leaves)) | set(wanted.joins)
        assert 1 <= len(following.members) <= min(low + more, shards)
        assert change(last=View(2, following.members), **facts) is None
