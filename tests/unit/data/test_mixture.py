"""Which source a sample of a mixture comes from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.mixture import Mixture, by_size, weight_at
from shoal.errors import ConfigError

pytestmark = pytest.mark.unit

weights = st.lists(
    st.one_of(
        st.floats(0.01, 10),
        st.tuples(st.tuples(st.just(0.2), st.floats(0, 5)), st.tuples(st.just(0.9), st.floats(1, 5))),
    ),
    min_size=1,
    max_size=5,
).map(tuple)


@settings(max_examples=100, deadline=None)
@given(weights, st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 9_000), st.integers(1, 150))
def test_every_source_is_used_without_a_gap_wherever_one_begins(
    given_weights: tuple, block: int, seed: int, start: int, length: int
) -> None:
    mixture = Mixture(weights=(*given_weights, 0.5), block=block, total=5_000, seed=seed)
    sources, places = mixture.locate(start, start + length)
    for source, (low, high) in enumerate(mixture.ranges(start, start + length)):
        assert places[sources == source].tolist() == list(range(low, high))
    assert sum(mixture.used(start)) == start
    whole = Mixture(weights=(*given_weights, 0.5), block=block, total=5_000, seed=seed).locate(0, start + length)
    assert np.array_equal(whole[0][start:], sources)
    assert np.array_equal(whole[1][start:], places)


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=6), st.integers(0, 2**40))
def test_constant_weights_are_kept_to_a_few_samples(given_weights: list[float], seed: int) -> None:
    mixture = Mixture(weights=tuple(given_weights), block=16, total=10**6, seed=seed)
    used = mixture.used(100_000)
    for count, weight in zip(used, given_weights, strict=True):
        assert abs(count - 100_000 * weight / sum(given_weights)) < 12


def test_weights_follow_progress() -> None:
    ramp = ((0.0, 0.0), (1.0, 1.0))
    mixture = Mixture(weights=(1.0, ramp), block=10, total=100_000, seed=1)
    early, late = mixture.ranges(0, 10_000), mixture.ranges(90_000, 100_000)
    assert (early[1][1] - early[1][0]) / 10_000 == pytest.approx(0.0484, abs=0.01)
    assert (late[1][1] - late[1][0]) / 10_000 == pytest.approx(0.487, abs=0.01)
    assert mixture.ranges(100_000, 120_000)[1][1] - mixture.used(100_000)[1] == pytest.approx(10_000, abs=20)


def test_a_source_that_has_weight_0_at_first_is_not_read_then() -> None:
    mixture = Mixture(weights=(1.0, ((0.5, 0.0), (0.6, 1.0))), block=8, total=8_000, seed=1)
    assert mixture.used(4_000) == [4_000, 0]


def test_the_arithmetic_stays_what_it_was() -> None:
    sources, places = Mixture(weights=(0.5, 0.3, 0.2), block=6, total=600, seed=7).locate(10, 22)
    assert (sources.tolist(), places.tolist()) == PINNED


def test_far_positions_are_found_in_no_time() -> None:
    mixture = Mixture(weights=(0.7, 0.3), block=64, total=10**9, seed=2)
    assert sum(mixture.used(10**8 + 3)) == 10**8 + 3


def test_sizes_and_temperature() -> None:
    assert by_size((1.0, 2.0), (100, 100), 1.0) == (100.0, 200.0)
    assert by_size((1.0, ((0.0, 1.0), (1.0, 3.0))), (10_000, 100), 2.0) == (100.0, ((0.0, 10.0), (1.0, 30.0)))
    assert weight_at(((0.0, 1.0), (1.0, 3.0)), 0.5) == 2.0


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="at progress 0 all sources have weight 0"):
        Mixture(weights=(((0.0, 0.0), (1.0, 1.0)),), block=4, total=10, seed=0)


PINNED = ([0, 0, 2, 0, 0, 0, 1, 2, 0, 1, 1, 2], [4, 5, 2, 6, 7, 8, 4, 3, 9, 5, 6, 4])
