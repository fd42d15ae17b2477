"""Every family of schedules: bounds, ends, jumps, warm-up, and that nothing but progress counts."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoal.job import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Piecewise,
    Polynomial,
    RangeTest,
    Rex,
    Scaled,
    Step,
    Triangular,
    Triangular2,
    WarmRestarts,
    WarmupStableDecay,
)
from shoal.job.schedules import KINDS, Schedule
from shoal.optim.schedules import factor, learning_rate
from tests.support.any_schedule import PLAIN, families, schedules

pytestmark = pytest.mark.unit


def rates(schedule: Schedule, total: int, peak: float = 1.0) -> list[float]:
    return [learning_rate(peak, schedule, step / total) for step in range(1, total + 1)]


def last_of(schedule: Any) -> float:
    """What each family says that it ends with, as a fraction of the peak."""
    if isinstance(schedule, Piecewise):
        return last_of(schedule.pieces[-1][1])
    if isinstance(schedule, Scaled):
        return schedule.by * last_of(schedule.of)
    if isinstance(schedule, (Constant, RangeTest)):
        return 1.0
    if isinstance(schedule, InverseSqrt):
        return math.sqrt(schedule.warmup)
    if isinstance(schedule, Triangular):
        return schedule.low
    if isinstance(schedule, Step):
        return schedule.factor ** (2 if schedule.every is None else math.ceil(1 / schedule.every - 1e-9) - 1)
    return schedule.final


def test_every_family_is_drawn() -> None:
    assert {*PLAIN, Piecewise, Scaled} == set(KINDS)


@given(schedules, st.floats(0, 1))
def test_bounds(schedule: Schedule, progress: float) -> None:
    assert -1e-12 <= factor(schedule, progress) <= 1 + 1e-12


@settings(deadline=None)
@given(families.filter(lambda s: isinstance(s, (Linear, Cosine, Polynomial, Exponential, Rex, WarmupStableDecay))))
def test_what_falls_never_rises_again_and_not_below_its_end(schedule: Any) -> None:
    after = [r for p, r in enumerate(rates(schedule, 200), 1) if p / 200 >= schedule.warmup]
    assert all(b <= a + 1e-12 for a, b in pairwise(after))
    assert min(after) >= schedule.final - 1e-12
    assert factor(schedule, schedule.warmup) == pytest.approx(1.0, abs=1e-12)


@given(schedules, st.integers(1, 10_000))
def test_the_last_step_has_exactly_the_final_rate(schedule: Schedule, total: int) -> None:
    last = learning_rate(0.3, schedule, total / total)
    assert last == 0.3 * factor(schedule, 1.0)
    assert factor(schedule, 1.0) == last_of(schedule)
    assert learning_rate(0.3, schedule, (total + 7) / total) == last


@given(schedules, st.integers(1, 1000), st.integers(2, 9))
def test_only_progress_counts(schedule: Schedule, step: int, times: int) -> None:
    assert learning_rate(1.0, schedule, step * times / (1000 * times)) == learning_rate(1.0, schedule, step / 1000)


@given(families.filter(lambda s: not isinstance(s, OneCycle)), st.floats(0, 1), st.floats(0, 1))
def test_a_warm_up_is_a_straight_line_to_where_the_curve_begins(schedule: Any, share: float, origin: float) -> None:
    assume(schedule.warmup > 0)
    begins = factor(schedule, schedule.warmup)
    inside = factor(schedule, share * schedule.warmup)
    assert inside == pytest.approx(share * begins, abs=1e-9)
    bent = factor(schedule, share * schedule.warmup, origin)
    assert bent == pytest.approx(origin + share * (begins - origin), abs=1e-9)
    if not isinstance(schedule, (Triangular, RangeTest)):
        assert begins == pytest.approx(1.0, abs=1e-12)


@given(schedules, st.integers(2, 1000))
def test_the_first_step_moves(schedule: Schedule, total: int) -> None:
    assume(not re.search(r"(?<!warmup)=0\.0[,)]", repr(schedule)))  # who asks for the rate 0 may get it
    assert learning_rate(1.0, schedule, 1 / total) > 0


SMOOTH = families.filter(lambda s: not isinstance(s, (Step, WarmRestarts)))


@given(SMOOTH, st.floats(0, 1), st.floats(0, 1e-7))
def test_no_jumps(schedule: Any, progress: float, by: float) -> None:
    # Roots are steeper than any line: the end of a Polynomial of a power below 1, the beginning of a fall by `sqrt`.
    root = (3 * by) ** schedule.power if isinstance(schedule, Polynomial) else 0.0
    root = math.sqrt(by / schedule.decay) + 1e-4 if isinstance(schedule, WarmupStableDecay) else root
    moved = abs(factor(schedule, progress + by) - factor(schedule, progress))
    assert moved <= 4000 * by + root + 1e-9


@given(st.data(), st.floats(0.01, 0.4))
def test_pieces_join_where_the_later_one_warms_up(data: st.DataObject, warmup: float) -> None:
    first, kind = data.draw(families), data.draw(st.sampled_from([Constant, Linear, Cosine, Rex, InverseSqrt]))
    schedule = Piecewise(pieces=((0.4, first), (0.6, kind(warmup=warmup))))
    end = factor(first, 1.0)
    assert factor(schedule, 0.4) == end
    assert factor(schedule, 0.4 + 1e-8) == pytest.approx(end, abs=1e-5)
    assert factor(schedule, 0.4 + 0.6 * warmup) == pytest.approx(1.0, abs=1e-6)
    assert factor(schedule, 1.0) == last_of(kind(warmup=warmup))


def test_pieces_see_their_own_progress_and_seams_belong_to_what_is_before() -> None:
    cosine = Cosine(warmup=0.0, final=0.1)
    schedule = Piecewise(pieces=((0.3, Constant(warmup=0.0)), (0.7, cosine)))
    found = rates(schedule, 10)
    assert found[:3] == [1.0, 1.0, 1.0]
    assert found[3:] == pytest.approx(rates(cosine, 7), abs=1e-12)
    half = Piecewise(pieces=((0.5, Linear(warmup=0.0, final=0.0)), (0.5, Scaled(by=0.5, of=Linear(warmup=0.0)))))
    assert rates(half, 4) == pytest.approx([0.5, 0.0, 0.5 * 0.55, 0.5 * 0.1])
    thirds = Piecewise(pieces=tuple((1 / 3, Scaled(by=b, of=Constant(warmup=0.0))) for b in (1.0, 0.5, 0.25)))
    assert rates(thirds, 9) == [1.0] * 3 + [0.5] * 3 + [0.25] * 3
    tenths = Piecewise(pieces=tuple((0.1, Scaled(by=(10 - i) / 10, of=Constant(warmup=0.0))) for i in range(10)))
    assert rates(tenths, 1000) == [(10 - i) / 10 for i in range(10) for _ in range(100)]


@pytest.mark.parametrize("total", [10, 40, 100, 1000, 4321 * 20])
def test_milestones_lie_between_steps(total: int) -> None:
    tenth = total // 10
    found = rates(Step(warmup=0.0, milestones=(0.3, 0.6, 0.7), factor=0.5), total)
    assert [found.count(r) for r in (1.0, 0.5, 0.25, 0.125)] == [3 * tenth, 3 * tenth, tenth, 3 * tenth]
    found = rates(Step(warmup=0.0, every=0.1, factor=0.5), total)
    assert [found.count(0.5**k) for k in range(10)] == [tenth] * 10
    assert found == sorted(found, reverse=True)


def test_rounding_moves_no_step_across_a_border() -> None:
    assert 0.07 / 0.01 > 7
    found = rates(Step(warmup=0.0, every=0.01, factor=0.9), 100)
    assert found == [0.9**k for k in range(100)]


def test_cycles_end_with_the_budget() -> None:
    found = rates(WarmRestarts(warmup=0.0, final=0.0, cycles=3, growth=2.0), 70)
    assert [i + 1 for i, r in enumerate(found) if r < 1e-12] == [10, 30, 70]
    found = rates(WarmRestarts(warmup=0.3, final=0.0, cycles=2, growth=1.0), 100)
    assert [i + 1 for i, r in enumerate(found) if r < 1e-12] == [65, 100]
    found = rates(Triangular2(cycles=3, low=0.0), 60)
    assert [found[9], found[29], found[49]] == pytest.approx([1.0, 0.5, 0.25])
    assert [i + 1 for i, r in enumerate(found) if r < 1e-12] == [20, 40, 60]


def test_a_range_test_rises_by_equal_ratios_to_the_peak() -> None:
    found = rates(RangeTest(start=1e-4), 8, peak=3.0)
    assert [b / a for a, b in pairwise(found)] == pytest.approx([10**0.5] * 7)
    assert (found[0], found[-1]) == (pytest.approx(3e-4 * 10**0.5), 3.0)


def test_rex_and_wsd_by_hand() -> None:
    # Equation of the paper: (1 - t/T) / (1/2 + 1/2 (1 - t/T)).
    assert factor(Rex(warmup=0.0, final=0.0), 0.5) == pytest.approx(0.5 / 0.75)
    assert factor(Rex(warmup=0.2, final=0.0), 0.6) == pytest.approx(0.5 / 0.75)
    stable = WarmupStableDecay(warmup=0.1, decay=0.4, final=0.0)
    assert factor(stable, 0.6) == pytest.approx(1.0)
    assert factor(WarmupStableDecay(decay=0.2), 0.8) == 1.0  # 0.8 + 0.2 is not quite 1 in binary
    assert factor(stable, 0.7) == pytest.approx(1 - math.sqrt(0.25))
    assert factor(InverseSqrt(warmup=0.1), 0.4) == pytest.approx(0.5)


def test_peak_is_reached_exactly() -> None:
    assert max(rates(Cosine(warmup=0.25, final=0.0), 40, 0.5)) == 0.5
    assert max(rates(OneCycle(warmup=0.25), 40, 0.5)) == 0.5
