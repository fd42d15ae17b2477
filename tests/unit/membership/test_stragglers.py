"""Persistently slow members are found, passing slowness is not, and unequal members get unequal work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.membership.stragglers import NOISE, Paces, cuts_for, pace, relative
from shoal.membership.view import View

pytestmark = pytest.mark.unit


def paces(seconds: Callable[[str, int], float], members: str = "abc", steps: int = 10) -> Paces:
    found = Paces(factor=1.5, steps=10)
    found.keep(members)
    for step in range(1, steps + 1):
        for member in members:
            found.add(member, step, seconds(member, step))
    return found


def test_who_is_slow_in_every_step_is_named_with_the_factor() -> None:
    (straggler,) = paces(lambda m, _: 0.3 if m == "b" else 0.1).stragglers()
    assert (straggler.member, straggler.steps) == ("b", 10)
    assert straggler.factor == pytest.approx(3.0)


def test_of_two_members_the_other_one_is_the_peer() -> None:
    assert [s.member for s in paces(lambda m, _: 0.3 if m == "b" else 0.1, "ab").stragglers()] == ["b"]


@pytest.mark.parametrize(
    "seconds",
    [
        lambda m, _: 0.1,
        lambda m, step: 0.3 if m == "b" and step != 7 else 0.1,  # once as fast as the others
        lambda m, step: 0.1 * step,  # all become slower together
        lambda m, _: {"a": 0.1, "b": 0.12, "c": 0.14}[m],
    ],
)
def test_passing_common_and_slight_slowness_is_nobodys(seconds: Callable[[str, int], float]) -> None:
    assert paces(seconds).stragglers() == ()


def test_nobody_is_judged_too_early_or_from_another_view() -> None:
    slow: Callable[[str, int], float] = lambda m, _: 0.3 if m == "b" else 0.1  # noqa: E731
    assert paces(slow, steps=9).stragglers() == ()
    after = paces(slow)
    after.keep("abc")
    assert after.stragglers() == ()


def test_repeated_reports_do_not_count_twice() -> None:
    found = Paces(steps=3)
    found.keep("ab")
    for step in (1, 1, 1, 2, 2):
        found.add("a", step, 1.0)
        found.add("b", step, 0.1)
    assert found.stragglers() == ()


def test_speeds_are_known_once_measured_and_stay_known_over_views() -> None:
    found = paces(lambda m, _: 0.5 if m == "b" else 0.25, steps=10)
    assert found.speeds() == {"a": 4.0, "b": 2.0, "c": 4.0}
    assert paces(lambda m, _: 0.5, steps=9).speeds() == {}
    found.keep("bd")
    found.add("d", 11, 0.1)
    assert found.speeds() == {"a": 4.0, "b": 2.0, "c": 4.0}


def test_a_slow_member_gets_fewer_shards() -> None:
    assert cuts_for([1.0, 1.0, 0.5], 10) == (0, 4, 8, 10)


@pytest.mark.parametrize("speeds", [[2.0, 2.0, 2.0], [1.0, 0.99, 1.01], [1.0, 0.5]])
def test_equal_members_and_noise_need_no_cuts(speeds: list[float]) -> None:
    assert cuts_for(speeds, 8 if len(speeds) == 3 else 2) is None


@settings(deadline=None)
@given(
    speeds=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=6),
    extra=st.integers(0, 20),
)
def test_cuts_cover_all_shards_give_everybody_work_and_are_never_worse(speeds: list[float], extra: int) -> None:
    shards = len(speeds) + extra
    cuts = cuts_for(speeds, shards)
    if cuts is not None:
        assert (cuts[0], cuts[-1], len(cuts)) == (0, shards, len(speeds) + 1)
        assert all(a < b for a, b in pairwise(cuts))
        even = View(1, tuple(map(str, range(len(speeds))))).bounds(shards)
        assert pace(cuts, speeds) < pace(even, speeds)


@settings(deadline=None)
@given(speeds=st.lists(st.floats(0.2, 5.0), min_size=2, max_size=4), extra=st.integers(0, 6))
def test_no_division_is_faster_beyond_noise(speeds: list[float], extra: int) -> None:
    shards = len(speeds) + extra
    ways = [(0, *inner, shards) for inner in combinations(range(1, shards), len(speeds) - 1)]
    best = min(pace(way, speeds) for way in ways)
    even = View(1, tuple(map(str, range(len(speeds))))).bounds(shards)
    cuts = cuts_for(speeds, shards)
    assert pace(cuts or even, speeds) <= (best / (1.0 - NOISE) if cuts is None else best) * (1 + 1e-9)


def test_members_of_unknown_speed_count_as_typical() -> None:
    assert relative({"a": 2.0, "b": 4.0, "c": 2.0}, ("c", "x", "b")) == [1.0, 1.0, 2.0]
    assert relative({}, ("a", "b")) == [1.0, 1.0]


@settings(deadline=None)
@given(seconds=st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.4, 1.0]), min_size=1, max_size=9))
def test_the_others_median_is_that_without_the_member_itself(seconds: list[float]) -> None:
    found = Paces(factor=1.2, steps=1)
    found.keep(str(i) for i in range(len(seconds)))
    for i, s in enumerate(seconds):
        found.add(str(i), 1, s)
    right = {
        str(i): s / median(others)
        for i, s in enumerate(seconds)
        if (others := seconds[:i] + seconds[i + 1 :]) and s / median(others) > 1.2
    }
    assert {x.member: x.factor for x in found.stragglers()} == pytest.approx(right)
