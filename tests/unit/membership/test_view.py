"""Views and leases: the division of a step never depends on who is there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.membership.course import Course
from shoal.membership.view import View, lease
from shoal.positions import Positions

pytestmark = pytest.mark.unit


def view_of(size: int) -> View:
    return View(1, tuple(f"w{i}" for i in range(size)))


@settings(deadline=None)
@given(shards=st.integers(1, 64), size=st.integers(1, 64))
def test_members_divide_the_virtual_shards_without_gap_or_overlap(shards: int, size: int) -> None:
    view = view_of(min(size, shards))
    ranges = [view.shards(m, shards) for m in view.members]
    assert [s for r in ranges for s in r] == list(range(shards))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert min(map(len, ranges)) >= 1
    assert list(view.divided(shards).items()) == list(zip(view.members, ranges, strict=True))


@settings(deadline=None)
@given(step=st.integers(1, 1000), size=st.integers(1, 8), per_shard=st.integers(1, 5))
def test_leases_of_a_step_cover_its_samples_in_rank_order(step: int, size: int, per_shard: int) -> None:
    view, batch = view_of(size), 8 * per_shard
    given_out = [
        lease(1, view.divided(8)[m], step, course=Course(Positions.even(batch, 1000)), virtual_shards=8)
        for m in view.members
    ]
    positions = [p for given_ in given_out for p in range(given_.start, given_.stop)]
    assert positions == list(range((step - 1) * batch, step * batch))


def test_cuts_overrule_the_even_division() -> None:
    view = View(1, ("a", "b", "c"), cuts=(0, 5, 6, 8))
    assert [view.shards(m, 8) for m in view.members] == [range(5), range(5, 6), range(6, 8)]
    assert view.divided(8) == {m: view.shards(m, 8) for m in view.members}
    second = lease(1, view.shards("b", 8), 2, course=Course(Positions.even(16, 9)), virtual_shards=8)
    assert (second.start, view.bounds(8)) == (26, (0, 5, 6, 8))


def test_a_stranger_has_no_rank() -> None:
    with pytest.raises(ValueError):
        view_of(2).rank("w7")
