"""Traces: reading them, and making them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.simulate.trace import Event, changed, poisson, read_trace

pytestmark = pytest.mark.unit


def test_a_file_is_read() -> None:
    found = read_trace(["# a comment", "0,add,a", "", "1500, add, b", "60000,remove,a", "60000,add,a"], "t.csv")
    assert found.events == (
        Event(0.0, "add", "a"), Event(1.5, "add", "b"), Event(60.0, "remove", "a"), Event(60.0, "add", "a")
    )  # fmt: skip
    assert (found.length_s, found.peak, found.removals) == (60.0, 2, 1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["0,add,a", "x,add,b"], "t.csv, line 2: 'x' is no time in milliseconds"),
        (["-1,add,a"], "line 1: '-1' is no time"),
        (["nan,add,a"], "line 1: 'nan' is no time"),
        (["0,add"], "line 1: '0,add' has 2 values, not 3"),
        (["0,kill,a"], "line 1: 'kill' is neither add nor remove"),
        (["0,add,"], "line 1: the node has no name"),
        (["0,add,a", "1,add,a"], "line 2: add a, but that node is there already"),
        (["0,add,a", "1,remove,b"], "line 2: remove b, but that node is not there"),
        (["5,add,a", "1,add,b"], "line 2: 1 ms is before the line above it (5 ms); sort the lines"),
        ([], "t.csv has no node at all"),
    ],
)
def test_what_is_wrong_is_named(lines: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_trace(lines, "t.csv")
    assert said in str(refused.value)


def as_lines(events: tuple[Event, ...]) -> list[str]:
    return [f"{e.at_s * 1e3!r},{e.what},{e.node}" for e in events]


@settings(deadline=None, max_examples=60)
@given(
    nodes=st.integers(1, 12), between=st.floats(10.0, 1e4), away=st.floats(0.0, 500.0), seed=st.integers(0, 99),
    spread=st.floats(0.0, 100.0), share=st.floats(0.0, 1.0), faster=st.floats(0.1, 600.0),
)  # fmt: skip
def test_what_is_made_is_a_trace(
    nodes: int, between: float, away: float, seed: int, spread: float, share: float, faster: float
) -> None:
    made = poisson(nodes, between_s=between, away_s=away, length_s=3000.0, seed=seed)
    assert made.peak <= nodes
    made = changed(made, faster=faster, spread_s=spread, notice_share=share, notice_s=120.0, seed=seed)
    read_trace(as_lines(made.events), "made")  # every node comes before it goes, all in order
    added = {e.node: e.at_s for e in made.events if e.what == "add"}
    assert all(e.notice_s <= e.at_s - added[e.node] + 1e-9 for e in made.events if e.what == "remove")


def test_the_rates_are_those_that_were_asked_for() -> None:
    made = poisson(50, between_s=100.0, away_s=0.0, length_s=200_000.0, seed=1)
    assert made.removals == pytest.approx(2000, rel=0.1)
    told = changed(made, notice_share=0.3, notice_s=60.0, seed=1)
    assert sum(e.notice_s > 0 for e in told.events) == pytest.approx(600, rel=0.15)
    assert poisson(50, between_s=100.0, away_s=0.0, length_s=2e5, seed=1) == made
    assert poisson(50, between_s=100.0, away_s=0.0, length_s=2e5, seed=2) != made
