"""Choosing by loss: the mean is kept, weights are bounded, and who asks does not matter."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.selecting import choose, hardest, importance, relative_probabilities
from shoal.job import Selection

pytestmark = pytest.mark.unit

LOSSES = st.lists(st.floats(0, 50) | st.integers(0, 3).map(float), min_size=2, max_size=24).map(np.asarray)
SIGNED = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=24).map(np.asarray)
FLOORS = st.floats(0.05, 1.0)


@settings(deadline=None)
@given(LOSSES, FLOORS, st.data())
def test_the_weighted_mean_is_on_average_that_of_all_candidates(
    losses: np.ndarray, floor: float, data: st.DataObject
) -> None:
    """Exactly: between two offsets at which a point of the comb passes a candidate's end, the draw is the same."""
    places = data.draw(st.integers(1, len(losses)))
    ends = np.cumsum(relative_probabilities(losses, floor))
    passed = (ends * places / ends[-1]) % 1.0
    cuts = np.unique(np.concatenate([[0.0, 1.0], passed]))
    average = 0.0
    for low, high in pairwise(cuts):
        chosen = importance(losses, places, floor, (low + high) / 2)
        assert chosen.weights is not None
        average += (high - low) * float(np.mean(chosen.weights.astype(np.float64) * losses[chosen.places]))
    assert average == pytest.approx(losses.mean(), rel=1e-5, abs=1e-9)


@settings(deadline=None)
@given(LOSSES | SIGNED, FLOORS, st.floats(0, 1, exclude_max=True), st.data())
def test_always_as_many_in_their_order_with_bounded_weights(
    losses: np.ndarray, floor: float, offset: float, data: st.DataObject
) -> None:
    places = data.draw(st.integers(1, len(losses)))
    chosen = importance(losses, places, floor, offset)
    assert chosen.weights is not None
    assert chosen.weights.dtype == np.float32
    assert len(chosen.places) == len(chosen.weights) == places
    assert (np.diff(chosen.places) >= 0).all()
    assert 0 <= chosen.places.min() <= chosen.places.max() < len(losses)
    assert 0 < chosen.weights.min() <= chosen.weights.max() <= 1 / floor * (1 + 1e-6)
    relative = relative_probabilities(losses, floor)
    drawn = np.bincount(chosen.places, minlength=len(losses))
    assert (np.abs(drawn - places * relative / len(losses)) < 1 + 1e-9).all(), "rounded up or down, never further"
    assert relative.sum() == pytest.approx(len(losses))
    order = np.argsort(losses, kind="stable")
    assert (np.diff(relative[order]) >= 0).all(), "a larger loss is never drawn less"


@given(LOSSES, st.floats(0, 1, exclude_max=True), st.data())
def test_a_floor_of_one_is_a_uniform_draw(losses: np.ndarray, offset: float, data: st.DataObject) -> None:
    places = data.draw(st.integers(1, len(losses)))
    chosen = importance(losses, places, 1.0, offset)
    assert chosen.weights is not None
    assert (chosen.weights == 1).all()
    assert len(set(chosen.places.tolist())) == places, "each at most once"


@pytest.mark.parametrize("losses", [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [-3.0, -3.0, -3.0]])
def test_equal_losses_are_drawn_alike(losses: list[float]) -> None:
    assert relative_probabilities(np.asarray(losses), 0.2).tolist() == pytest.approx([1.0] * 3)


def test_negative_losses_count_from_the_least() -> None:
    assert relative_probabilities(np.asarray([-1.0, 0.0, 1.0]), 0.4).tolist() == pytest.approx([0.4, 1.0, 1.6])


def test_a_loss_that_is_no_number_is_chosen_so_that_the_step_tells() -> None:
    for bad in (np.nan, np.inf):
        losses = np.asarray([1.0, bad, 3.0, 2.0])
        assert hardest(losses, 2).tolist() == [1, 2]
        assert all(1 in importance(losses, 2, 0.2, u).places for u in np.linspace(0, 0.99, 50))


@given(LOSSES | SIGNED, st.data())
def test_the_hardest_keep_their_order_and_the_earlier_wins(losses: np.ndarray, data: st.DataObject) -> None:
    places = data.draw(st.integers(1, len(losses)))
    right = sorted(sorted(range(len(losses)), key=lambda i: (-losses[i], i))[:places])
    assert hardest(losses, places).tolist() == right


def test_the_choice_is_keyed_by_seed_and_position() -> None:
    losses = np.asarray([0.5, 1.0, 2.0, 0.1, 0.7, 1.5, 0.2, 0.9])
    spec = Selection()

    def places(seed: int, first: int) -> tuple[int, ...]:
        return tuple(choose(spec, losses, 4, seed=seed, first=first).places.tolist())

    assert places(1, 64) == places(1, 64)
    assert len({places(1, first) for first in range(0, 160, 8)}) > 1
    assert len({places(seed, 64) for seed in range(20)}) > 1
    worst = choose(Selection(rule="hardest"), losses, 3, seed=1, first=0)
    assert (worst.places.tolist(), worst.weights) == ([1, 2, 5], None)


def test_the_arithmetic_is_pinned() -> None:
    """Changing it would make a resumed run train on other samples."""
    chosen = choose(Selection(), np.asarray([0.5, 1.0, 2.0, 0.0]), 2, seed=7, first=24)
    assert chosen.weights is not None
    assert chosen.places.tolist() == [1, 2]
    assert chosen.weights.tolist() == np.asarray([35 / 39, 35 / 71], np.float32).tolist()
