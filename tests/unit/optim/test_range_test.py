"""Reading a range test: curves of known shape, whatever their scale and noise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.optim.range_test import LEAST, Trend, analyse, rule_for, smoothed

pytestmark = pytest.mark.unit

LOW, HIGH = 1e-6, 1.0


def rates(steps: int) -> list[float]:
    return [LOW * (HIGH / LOW) ** (i / (steps - 1)) for i in range(steps)]


def curve(steps: int, *, falls: float, rises: float, top: float = 2.3, depth: float = 1.8) -> list[float]:
    """Flat at `top`, a fall around the rate `falls`, an explosion around `rises`."""
    out = []
    for rate in rates(steps):
        x = math.log10(rate)
        fall = depth / (1 + math.exp(-4 * (x - math.log10(falls))))
        rise = math.exp(min(6 * (x - math.log10(rises)), 50))
        out.append(top - fall + rise)
    return out


@settings(deadline=None, max_examples=60)
@given(
    st.floats(-4.5, -2.5),
    st.floats(1.2, 1.8),
    st.sampled_from([60, 100, 300]),
    st.floats(0.001, 100),
    st.integers(0, 9),
)
def test_the_fall_and_the_lowest_loss_are_found(
    falls: float, apart: float, steps: int, scale: float, seed: int
) -> None:
    drawn = random.Random(seed)
    losses = [
        scale * (loss + drawn.gauss(0, 0.03)) for loss in curve(steps, falls=10**falls, rises=10 ** (falls + apart))
    ]
    found = analyse(rates(steps), losses, steps)
    assert found.steepest is not None
    assert found.lowest is not None
    assert abs(math.log10(found.steepest) - falls) < 0.45
    assert falls < math.log10(found.lowest) < falls + apart + 0.1
    assert found.diverged_at is not None
    assert found.diverged_at > found.lowest
    assert found.tenth == found.lowest / 10
    assert found.suggestion == pytest.approx(found.tenth, rel=0.06)
    assert found.rates[-1] < found.diverged_at, "what came after is left out"
    assert f"It diverged at {found.diverged_at:.2g}." in found.reason


@given(st.lists(st.floats(-1e6, 1e6), max_size=120), st.integers(LEAST, 200))
def test_anything_is_read_and_explained(losses: list[float], steps: int) -> None:
    losses = losses[:steps]
    found = analyse(rates(steps)[: len(losses)], losses, steps, next_rate=None if losses else LOW)
    assert len(found.rates) == len(found.losses) == len(found.smoothed) <= len(losses)
    assert found.reason
    assert (found.lowest is None) == (found.steepest is None) == (found.suggestion is None)
    if found.steepest is not None and found.lowest is not None:
        assert found.steepest <= found.lowest


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=80), st.floats(1, 10), st.floats(0.01, 100))
def test_smoothing_stays_between_the_extremes_and_keeps_units(losses: list[float], memory: float, scale: float) -> None:
    found = smoothed(losses, memory)
    assert min(losses) - 1e-6 <= min(found) <= max(found) <= max(losses) + 1e-6
    scaled = smoothed([scale * x for x in losses], memory)
    assert scaled == pytest.approx([scale * x for x in found], rel=1e-9, abs=1e-6)


def test_smoothing_delays_nothing() -> None:
    peak = [max(0.0, 10.0 - abs(i - 50)) for i in range(101)]
    found = smoothed(peak, 5)
    assert found.index(max(found)) == 50


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    drawn = random.Random(1)
    found = analyse(rates(100), [5.0 + drawn.gauss(0, 0.5) for _ in range(100)], 100)
    assert (found.suggestion, found.lowest, found.diverged_at) == (None, None, None)
    assert "did not fall between the rates 1e-06 and 1" in found.reason


def test_a_loss_that_still_falls_at_the_end_says_where_to_look() -> None:
    found = analyse(rates(100), curve(100, falls=0.05, rises=1e9), 100)
    assert found.lowest == found.rates[-1]
    assert found.tenth is None
    assert found.suggestion == pytest.approx(found.steepest, rel=0.06)
    assert "raise --to" in found.reason


def test_a_loss_that_rises_without_diverging_is_not_called_diverged() -> None:
    losses = [5.0 - 2.5 * min(i, 60) / 60 + 3.0 * max(i - 70, 0) / 30 for i in range(100)]
    found = analyse(rates(100), losses, 100)
    assert found.diverged_at is None
    assert "did not diverge up to 1." in found.reason
    assert found.tenth is not None


def test_a_step_that_is_not_finite_ends_the_test() -> None:
    losses = curve(100, falls=1e-3, rises=1e9)[:70]
    found = analyse(rates(100)[:70], losses, 100, next_rate=rates(100)[70])
    assert found.diverged_at == rates(100)[70]
    assert found.suggestion == pytest.approx(found.rates[-1] / 10, rel=0.5)
    nothing = analyse([], [], 100, next_rate=LOW)
    assert nothing.suggestion is None
    assert "after 0 steps, at the rate 1e-06: too few to tell. Begin with a lower rate" in nothing.reason
    assert analyse(rates(100)[:4], [2.0, 2.0, 1.0, 1.0], 100, next_rate=1e-5).suggestion is None


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_when_a_loss_counts_as_diverged(scale: float) -> None:
    def ends(*losses: float) -> int | None:
        trend = Trend(rule_for(60))
        return next((i for i, loss in enumerate(losses) if trend.hear(scale * loss)), None)

    assert ends(*[2.0] * 50) is None
    assert ends(*[2.0] * 5, *[1.0] * 20, *[3.9] * 40) is None
    late = ends(*[2.0] * 5, *[1.0] * 20, *[9.0] * 5)
    assert late is not None
    assert 25 <= late <= 28
    assert ends(2.0, 1.0, math.inf) == 2
    assert ends(2.0, math.nan, 2.0) is None, "nobody knows that loss"
    assert ends(*[2.0] * 5, *[0.01] * 30, *[0.1] * 20) is None, "near zero, a little is much more than four times"
    assert ends(*[-2.0] * 5, *[-3.0] * 20, *[8.0] * 20) is not None
