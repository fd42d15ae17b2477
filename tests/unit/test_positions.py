"""Positions of steps: no gap, no overlap, and the way back from a position to its step."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.positions import Positions

pytestmark = pytest.mark.unit


@st.composite
def some(draw: st.DrawFn) -> Positions:
    stretches = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 40)), min_size=1, max_size=5))
    first, spans = 1, []
    for length, count in stretches:
        spans.append((first, count))
        first += length
    return Positions(tuple(spans), draw(st.integers(1, 50)))


@given(some())
def test_steps_follow_each_other_without_a_gap(positions: Positions) -> None:
    at = 0
    for step in range(1, 60):
        assert positions.before(step - 1) == at
        start, stop = positions.of(step)
        assert (start, stop) == (at, at + positions.per_step(step))
        assert {positions.step_of(p) for p in range(start, stop)} == {step}
        at = stop
        if step == positions.steps:
            assert positions.total == stop
            assert positions.most == max(map(positions.per_step, range(1, step + 1)))


@given(some())
def test_each_step_reads_what_its_stretch_says(positions: Positions) -> None:
    firsts = dict(positions.spans)
    count = 0
    for step in range(1, 60):
        count = firsts.get(step, count)
        assert positions.per_step(step) == count


@given(some())
def test_json_brings_them_back(positions: Positions) -> None:
    assert Positions.from_json(json.loads(json.dumps(positions.spans)), positions.steps) == positions


def test_even_ones() -> None:
    positions = Positions.even(8, 10)
    assert (positions.of(3), positions.before(10), positions.total, positions.step_of(17)) == ((16, 24), 80, 80, 3)


@pytest.mark.parametrize(
    ("spans", "steps", "said"),
    [
        ((), 3, "must begin with step 1"),
        (((2, 8),), 3, "must begin with step 1"),
        (((1, 8), (1, 4)), 3, "rise"),
        (((1, 8), (5, 4), (4, 2)), 9, "rise"),
        (((1, 8), (5, 0)), 9, "at least one position"),
        (((1, 8),), 0, "a run of 0 steps"),
    ],
)
def test_what_is_none_is_refused(spans: tuple[tuple[int, int], ...], steps: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Positions(spans, steps)
