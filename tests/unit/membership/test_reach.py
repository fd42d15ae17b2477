"""Who is left out when members do not reach each other."""

from __future__ import annotations

import random

import pytest

from shoal.membership.reach import cut_off

pytestmark = pytest.mark.unit


def test_who_all_reach_each_other_stays() -> None:
    assert cut_off(("a", "b", "c"), {}) == {}
    assert cut_off(("a", "b", "c"), {"a": (), "b": ["somebody else"]}) == {}


def test_one_that_is_cut_off_goes_whoever_says_so() -> None:
    alone = {"b": ("a", "c")}
    assert cut_off(("a", "b", "c"), {"b": ["a", "c"]}) == alone
    assert cut_off(("a", "b", "c"), {"a": ["b"], "c": ["b"]}) == alone, "one direction is enough"


def test_of_two_parts_the_larger_one_stays() -> None:
    members = ("a", "b", "c", "d", "e")
    assert set(cut_off(members, {"a": "bce", "d": "bce"})) == {"a", "d"}


def test_of_equal_parts_one_stays_whole() -> None:
    assert cut_off(("a", "b"), {"a": ["b"]}) == {"b": ("a",)}, "the lower rank stays"
    assert set(cut_off(("a", "b", "c", "d"), {"a": "bd", "c": "bd"})) in ({"a", "c"}, {"b", "d"})


def test_who_stays_always_reaches_everybody_who_stays() -> None:
    dice = random.Random(5)
    for _ in range(300):
        members = [str(i) for i in range(dice.randint(1, 9))]
        unseen = {m: [o for o in members if o != m and dice.random() < 0.2] for m in members}
        gone = cut_off(members, unseen)
        stay = [m for m in members if m not in gone]
        assert stay
        assert not any(o in unseen[m] for m in stay for o in stay)
        assert all(others for others in gone.values())
