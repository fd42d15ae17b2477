"""What a word and a step cost the coordinator grows neither with the members nor with the length of the run."""

from __future__ import annotations

import gc
import time
import tracemalloc
from pathlib import Path

import pytest
from benchmarks.driven import Driven

pytestmark = pytest.mark.unit


def word_us(members: int, folder: Path) -> float:
    """Microseconds of processor time for one word of one member, its share of the commits included."""
    driven = Driven(members, folder)
    driven.beat(2)
    best = float("inf")
    for _ in range(2):
        begun = time.process_time()
        for _ in range(5):  # ten steps, and one copy of the state
            driven.beat(2)
        best = min(best, (time.process_time() - begun) / (5 * members))
    assert driven.book.committed > 10
    return 1e6 * best


def test_a_word_costs_the_same_among_many_members(tmp_path: Path) -> None:
    few, many = word_us(50, tmp_path / "few"), word_us(1600, tmp_path / "many")
    assert many < 3.0 * few, f"{few:.0f} us among 50 members, {many:.0f} us among 1600"


def test_what_is_looked_at_four_times_a_second_is_quick(tmp_path: Path) -> None:
    driven = Driven(1600, tmp_path)
    for _ in range(12):
        driven.beat(2)
    begun = time.process_time()
    driven.running.paces.stragglers()
    driven.running.pulse.stuck(driven.now, 0.25)
    assert time.process_time() - begun < 0.5


@pytest.mark.parametrize("sharded", [False, True])
def test_a_long_run_needs_no_more_memory(tmp_path: Path, sharded: bool) -> None:
    driven = Driven(2, tmp_path, sharded=sharded)

    def until(step: int) -> None:
        while driven.book.committed < step:
            driven.beat(8)

    until(1500)
    gc.collect()
    tracemalloc.start()
    until(2000)
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    until(6000)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 40_000, f"{(after - before) / 4000:.1f} bytes for each step"
