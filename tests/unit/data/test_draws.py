"""Random numbers of samples: keyed by position, evenly spread, and paired inside virtual shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shoal.data.draws import Draws
from shoal.data.order import derive, derive_each

pytestmark = pytest.mark.unit

MANY = Draws(seed=3, purpose=0, first=0, samples=20_000, shard_size=20_000)


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3), st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_many_keys_at_once_are_those_of_derive(before: list[int], parts: list[int]) -> None:
    found = derive_each(derive(*before), np.array(parts, dtype=np.int64))
    assert found.tolist() == [derive(*before, part) for part in parts]


def test_numbers_are_even_and_do_not_follow_each_other() -> None:
    a, b = MANY.uniform(0), MANY.uniform(1)
    other = Draws(seed=3, purpose=1, first=0, samples=20_000, shard_size=20_000).uniform(0)
    for values in (a, b, other, MANY.uniforms(0, (2, 3))[:, 1, 2]):
        assert stats.kstest(values, "uniform").pvalue > 1e-3
        assert values.min() >= 0
        assert values.max() < 1
    for x, y in ((a, b), (a, other), (a[:-1], a[1:]), (a, MANY.uniforms(0, (1,))[:, 0])):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.03


def test_numbers_below_a_limit_are_even_and_reach_it() -> None:
    counts = np.bincount(MANY.below(0, 7))
    assert len(counts) == 7
    assert stats.chisquare(counts).pvalue > 1e-3
    limits = np.arange(1, 20_001)
    assert (MANY.below(0, limits) < limits).all()


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.4, 1.0, 2.0, 30.0])
def test_beta_is_beta(alpha: float) -> None:
    found = MANY.beta(0, alpha)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found * 65536 == np.round(found * 65536)).all()
    assert found.mean() == pytest.approx(0.5, abs=0.015)
    assert found.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    # Rounding gathers what lies next to 0 and 1, so the distributions are compared between them.
    for quantile in np.linspace(0.02, 0.98, 25):
        assert (found <= quantile).mean() == pytest.approx(stats.beta(alpha, alpha).cdf(quantile), abs=0.012)


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(1, 5), st.integers(0, 10**9), st.integers(0, 2**63))
def test_partners_are_others_of_the_same_shard_and_each_of_exactly_one(
    size: int, shards: int, start: int, seed: int
) -> None:
    found = Draws(seed, 0, start * size, size * shards, size).partners()
    assert sorted(found) == list(range(size * shards))
    assert (found != np.arange(size * shards)).all()
    assert (found // size == np.arange(size * shards) // size).all()


def test_a_part_has_the_numbers_of_the_whole() -> None:
    whole, part = Draws(1, 2, 60, 12, 4), Draws(1, 2, 64, 4, 4)
    assert np.array_equal(whole.uniform(5)[4:8], part.uniform(5))
    assert np.array_equal(whole.uniforms(5, (2, 2))[4:8], part.uniforms(5, (2, 2)))
    assert np.array_equal(whole.uniforms(5, (2, 2), [4, 6]), part.uniforms(5, (2, 2))[[0, 2]])
    assert np.array_equal(whole.partners()[4:8], part.partners() + 4)
