"""The state of the next view: the most advanced whole one, of one making, never behind a commit but from storage."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.membership.messages import Fresh, Held, InMemory, Stored, ViewEnd
from shoal.membership.recovery import Choice, Formed, Remembered, sources
from shoal.membership.view import View

pytestmark = pytest.mark.unit

ABC = Formed(View(1, ("a", "b", "c")), 0)
SAVED = Stored(4, "somewhere")


def replica(member: str, step: int, view: int = 1, *, stale: bool = False, made_in: int | None = None) -> ViewEnd:
    return ViewEnd(member, view, step, broken="reset", stale=stale, made_in=made_in)


def keeper(member: str, *held: tuple[str, int, int], view: int = 1) -> ViewEnd:
    return ViewEnd(member, view, 0, stale=True, held=tuple(Held(*h) for h in held))


def remembered(choice: Choice | None) -> tuple[int, int]:
    assert choice is not None
    assert isinstance(choice.state, Remembered), choice
    assert choice.again is None
    return choice.state.view, choice.step


# Replicated ----------------------------------------------------------------------------------------------------------


def test_the_most_advanced_survivor_wins_and_its_equals_give_too() -> None:
    ends = [replica("a", 7), replica("b", 6), replica("c", 7)]
    choice = sources([ABC], ends, sharded=False, committed=6, checkpoint=SAVED)
    assert remembered(choice) == (1, 7)
    assert choice is not None
    assert choice.source(("a", "b", "c", "d")) == InMemory(7, (("a", ("a",)), ("c", ("c",))), 1)
    assert choice.source(("b", "d")) is None


def test_who_never_took_the_state_over_has_none() -> None:
    ends = [replica("a", 3), replica("b", 9, stale=True)]
    assert remembered(sources([ABC], ends, sharded=False, committed=3, checkpoint=None)) == (1, 3)


def test_after_a_loss_while_the_state_travels_the_old_state_of_those_who_still_have_it_counts() -> None:
    second = Formed(View(2, ("a", "b")), 7)
    ends = [replica("b", 6, view=2, made_in=1)]  # a, which was to give step 7, is lost
    assert remembered(sources([ABC, second], ends, sharded=False, committed=6, checkpoint=SAVED)) == (1, 6)


def test_a_state_of_a_branch_that_was_rolled_back_is_none_of_the_run() -> None:
    second = Formed(View(2, ("d",)), 4)
    spare = replica("a", 6)  # was no member of the view that went on from step 4
    choice = sources([ABC, second], [spare], sharded=False, committed=4, checkpoint=SAVED)
    assert choice is not None
    assert choice.state == SAVED


# Sharded -------------------------------------------------------------------------------------------------------------


def test_one_loss_is_made_good_by_the_buddy() -> None:
    ends = [keeper("a", ("a", 1, 5), ("c", 1, 5)), keeper("b", ("b", 1, 5), ("a", 1, 5))]
    choice = sources([ABC], ends, sharded=True, committed=5, checkpoint=SAVED)
    assert remembered(choice) == (1, 5)
    assert choice is not None
    assert choice.source(("b", "a", "d")) == InMemory(5, (("a", ("a", "c")), ("b", ("b",))), 1)


def test_the_highest_step_that_is_whole_not_the_highest_that_somebody_has() -> None:
    ends = [
        keeper("a", ("a", 1, 5), ("c", 1, 5), ("a", 1, 6)),
        keeper("b", ("b", 1, 5), ("b", 1, 6), ("a", 1, 5)),
    ]
    assert remembered(sources([ABC], ends, sharded=True, committed=5, checkpoint=SAVED)) == (1, 5)


def test_the_buddy_died_too() -> None:
    ends = [keeper("b", ("b", 1, 6), ("a", 1, 6))]
    choice = sources([ABC], ends, sharded=True, committed=6, checkpoint=SAVED)
    assert choice == Choice(SAVED, "from the checkpoint of step 4: nobody holds a whole state in memory", again=(5, 6))
    fresh = sources([ABC], ends, sharded=True, committed=6, checkpoint=None)
    assert fresh is not None
    assert (fresh.state, fresh.again) == (Fresh(), (1, 6))
    assert sources([ABC], ends, sharded=True, committed=6, checkpoint=None, fresh_allowed=False) is None


def test_memory_behind_a_commit_is_not_used() -> None:
    ends = [keeper("a", ("a", 1, 5), ("b", 1, 5), ("c", 1, 5))]
    choice = sources([ABC], ends, sharded=True, committed=6, checkpoint=SAVED)
    assert choice is not None
    assert choice.state == SAVED
    assert "the latest whole state in memory is that of step 5" in choice.reason


def test_parts_of_the_same_step_of_two_views_are_never_put_together() -> None:
    # View 1 did step 6, broke, and view 2 did it again in two parts. b of view 2 is lost before its copy arrived.
    second = Formed(View(2, ("a", "b")), 5)
    ends = [
        keeper("a", ("a", 1, 6), ("c", 1, 6), ("a", 2, 6), ("a", 1, 5), ("c", 1, 5), view=2),
        keeper("d", ("b", 1, 6), ("b", 1, 5)),
    ]
    assert remembered(sources([ABC, second], ends, sharded=True, committed=5, checkpoint=SAVED)) == (1, 5)


def test_a_view_that_breaks_before_its_first_snapshot_falls_back_on_that_of_the_view_before() -> None:
    second = Formed(View(2, ("a", "b", "d")), 5)
    ends = [keeper("a", ("a", 1, 5), ("c", 1, 5), view=2), keeper("b", ("b", 1, 5), view=2), keeper("d", view=2)]
    choice = sources([ABC, second], ends, sharded=True, committed=5, checkpoint=None)
    assert remembered(choice) == (1, 5)
    assert choice is not None
    assert choice.source(("a", "b", "d")) == InMemory(5, (("a", ("a", "c")), ("b", ("b",))), 1)


def test_the_newest_making_of_a_step_is_taken() -> None:
    second = Formed(View(2, ("a", "b")), 5)
    ends = [keeper(m, *((o, 1, 5) for o in "abc"), *((o, 2, 5) for o in "ab"), view=2) for m in "ab"]
    assert remembered(sources([ABC, second], ends, sharded=True, committed=5, checkpoint=None)) == (2, 5)


def test_the_load_of_giving_is_spread() -> None:
    state = Remembered(5, 1, True, (("a", ("a",)), ("b", ("a", "d")), ("c", ("a", "d"))))
    assert state.among(("a", "d")) == InMemory(5, (("a", ("a", "c")), ("d", ("b",))), 1)


def test_nothing_at_all_is_a_fresh_start() -> None:
    choice = sources([], [], sharded=True, committed=0, checkpoint=None)
    assert choice == Choice(Fresh(), "from the initial weights")


@settings(deadline=None)
@given(data=st.data(), views=st.integers(1, 3))
def test_whatever_is_held_the_choice_is_whole_of_one_view_and_on_the_runs_branch(
    data: st.DataObject, views: int
) -> None:
    names = "abcde"
    formed, source = [], 0
    for number in range(1, views + 1):
        members = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
        formed.append(Formed(View(number, tuple(members)), source))
        source = data.draw(st.integers(source, source + 3))
    held = st.builds(Held, st.sampled_from(names), st.integers(1, views), st.integers(0, 6))
    ends = [
        ViewEnd(m, views, 0, stale=True, held=tuple(data.draw(st.lists(held, max_size=12, unique=True)))) for m in "abx"
    ]
    committed = data.draw(st.integers(0, 5))
    choice = sources(formed, ends, sharded=True, committed=committed, checkpoint=None)
    able = {
        (step, f.view.number)
        for f, step in itertools.product(formed, range(7))
        if all(Held(o, f.view.number, step) in {h for e in ends for h in e.held} for o in f.view.members)
        and all(later.source_step >= step for later in formed if later.view.number > f.view.number)
    }
    assert choice is not None
    best = max(able, default=(-1, 0))
    if best[0] >= committed:
        assert remembered(choice) == (best[1], best[0])
        given_by = choice.source("abx")
        assert isinstance(given_by, InMemory)
        owners = [o for _, parts in given_by.gives for o in parts]
        assert sorted(owners) == sorted(formed[best[1] - 1].view.members)
        has = {e.member: e.held for e in ends}
        assert all(Held(o, best[1], best[0]) in has[m] for m, parts in given_by.gives for o in parts)
    else:
        assert choice.state == Fresh()
