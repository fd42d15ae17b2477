"""How many workers to ask for: what is of no use goes back, and nothing is fetched again and again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.capacity.appetite import AGAIN_S, Appetite, Order, Table
from shoal.pool.division import useful_sizes

pytestmark = pytest.mark.unit

IDLE_S = 60.0


def table(have: int, idle: int = 0, *, low: int = 1, high: int = 8, now: float = 0.0, **more: float) -> Table:
    return Table(low=low, high=high, sizes=useful_sizes(low, high, 8), have=have, idle=idle, now=now, **more)


def test_as_many_as_the_job_wants() -> None:
    assert Appetite(IDLE_S).decide(table(0)) == Order(8)
    assert Appetite(IDLE_S).decide(table(3)) == Order(8)


def test_a_spare_waits_and_then_goes_back_and_is_not_asked_for_at_once() -> None:
    appetite = Appetite(IDLE_S)
    assert appetite.decide(table(5, 1)) == Order(8)
    assert appetite.decide(table(5, 1, now=59)) == Order(8), "somebody may be lost meanwhile"
    order = appetite.decide(table(5, 1, now=60))
    assert (order.want, order.give_back) == (4, 1), "with 8 virtual shards five are as fast as four"
    assert appetite.decide(table(4, now=61)).want == 4
    assert appetite.decide(table(3, now=62)).want == 4, "one that is lost is replaced"
    assert appetite.decide(table(4, now=60 + AGAIN_S[0])).want == 8, "the cluster may have grown"


def test_each_vain_attempt_makes_the_next_one_later() -> None:
    appetite, now, tries = Appetite(IDLE_S), 0.0, 0
    have, wanted = 5, 8
    while now < 24 * 3600:
        order = appetite.decide(table(have, max(0, have - 4), now=now))
        tries += order.give_back > 0
        have = 5 if order.want > 4 else 4  # the cluster has room for five
        now += 1.0
    assert tries < 30, f"{tries} times in a day a node came for nothing; want {wanted}"


def test_what_can_never_be_of_use_is_given_back_for_good() -> None:
    appetite = Appetite(IDLE_S)
    appetite.decide(table(6, 2, high=6))
    assert appetite.decide(table(6, 2, high=6, now=60)).give_back == 2
    assert appetite.decide(table(4, high=6, now=1e9)).want == 4


def test_somebody_who_scales_begins_anew() -> None:
    appetite = Appetite(IDLE_S)
    appetite.decide(table(6, 2, high=6))
    appetite.decide(table(6, 2, high=6, now=60))
    assert appetite.decide(table(4, high=8, now=61)).want == 8
    order = appetite.decide(table(4, 2, high=2, now=62))
    assert (order.want, order.give_back) == (2, 2), "those beyond workers.max go as soon as they are out of the view"


def test_an_infinite_patience_keeps_every_spare() -> None:
    appetite = Appetite(float("inf"))
    assert {appetite.decide(table(5, 1, now=n * 1e6)).give_back for n in range(9)} == {0}


def test_near_the_end_nobody_new_is_asked_for_but_what_the_run_needs() -> None:
    late = {"left_s": 20.0, "coming_s": 30.0}
    order = Appetite(IDLE_S).decide(table(3, **late))
    assert order.want == 3
    assert "the run ends in 20s" in order.reason
    assert Appetite(IDLE_S).decide(table(1, low=2, **late)).want == 8


def test_spares_that_are_needed_stay() -> None:
    appetite = Appetite(IDLE_S)
    appetite.decide(table(5, 1, low=5))
    assert appetite.decide(table(5, 1, low=5, now=60)).give_back == 0


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10), st.floats(0, 400)), max_size=60))
def test_never_below_the_least_nor_above_the_most_and_never_more_than_idles(
    steps: list[tuple[int, int, float]],
) -> None:
    appetite, now = Appetite(IDLE_S), 0.0
    for have, idle, passed in steps:
        now += passed
        t = replace(table(have, min(idle, have), low=2, high=7), now=now)
        order = appetite.decide(t)
        assert order.want <= max(t.high, have)
        assert 0 <= order.give_back <= t.idle
        assert have - order.give_back >= min(have, t.low)
        assert order.want >= min(t.low, t.high)
