from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli import text

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0s"), (59.4, "59s"), (59.6, "1:00"), (125, "2:05"), (12_000, "3:20:00"), (-3, "0s")]
)
def test_duration(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-1, "0s"), (59, "59s"), (61, "1m"), (7199, "1h"), (86400 * 5 + 1, "5d")]
)
def test_age(seconds: float, shown: str) -> None:
    assert text.age(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.25, "0.25"), (9.99, "9.99"), (870.4, "870"), (999.6, "1k"), (1234, "1.23k"), (111_000, "111k")],
)
def test_amount(value: float, shown: str) -> None:
    assert text.amount(value) == shown


@given(st.floats(min_value=0.01, max_value=9e11))
def test_an_amount_is_short_and_near(value: float) -> None:
    shown = text.amount(value)
    number = float(shown.rstrip("kMG")) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(shown[-1], 1)
    assert len(shown) <= 6
    assert math.isclose(number, value, rel_tol=0.006)


def test_what_a_run_took_fits_on_a_line() -> None:
    said = {"joules": {"train": 1e6, "start": 2.5e5}, "dollars": {"train": 0.003, "lost": 0.001}}
    known = {**said, "co2_g": 164.93, "sources": ["nvml"]}
    assert text.cost(known) == "1.25 MJ (nvml, 20% wasted), 165 g CO2e, $0.004 (25% wasted)"
    assert text.cost({"joules": {"train": 870.0}, "co2_g": 0.1148, "sources": ["rapl"]}) == (
        "870 J (rapl, 0% wasted), 0.115 g CO2e"
    )
    assert text.cost({}) == ""
    assert [text.dollars(d) for d in (0.00312, 1.239, 1240.5)] == ["$0.00312", "$1.24", "$1240.50"]


def test_odd_numbers_are_shown_as_they_are() -> None:
    assert text.amount(math.nan) == "nan"
    assert text.size(3 << 29) == "1.5 GiB"
    assert text.size(2048) == "2 KiB"
