"""Which of a virtual shard's candidates are trained on, from their losses: `data.selection`. Pure NumPy, float64.

`importance` draws candidate i with probability q[i] = floor / n + (1 - floor) * loss[i] / sum(losses) and gives it the
weight 1 / (n * q[i]), so that the mean of weight x loss is on average the mean loss of all n candidates, and so is its
gradient (Zhao & Zhang 2015, "Stochastic optimization with importance sampling for regularized loss minimization";
Katharopoulos & Fleuret 2018, "Not all samples are created equal"). The draws are systematic (Madow 1949, "On the theory
of systematic sampling, II"): one random number moves a comb of evenly spaced points over the running sum of q, so a
candidate is drawn as often as it should be, rounded down or up, and little is left to chance.

`hardest` takes the largest losses and weighs them alike (Jiang et al. 2019, "Accelerating deep learning by focusing on
the biggest losers"): the mean is that of the hard samples, not of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.data.draws import uniform
from shoal.job.sampling import Selection

_SELECT = 0x73656C656374  # "select": keeps these random numbers apart from all others


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a virtual shard trains on."""

    places: np.ndarray
    """int64 [places]: which candidates, in their order. `importance` may draw one several times."""
    weights: np.ndarray | None
    """float32 [places]; None: all weigh 1."""


def choose(spec: Selection, losses: np.ndarray, places: int, *, seed: int, first: int) -> Chosen:
    """`places` of the candidates with `losses` (float64 [candidates]), of which the first one is at position `first` of
    the endless stream: the same whoever asks."""
    if spec.rule == "hardest":
        return Chosen(hardest(losses, places), None)
    return importance(losses, places, spec.floor, uniform(seed, _SELECT, first))


def hardest(losses: np.ndarray, places: int) -> np.ndarray:
    """int64 [places]: the candidates with the largest losses, in their order; of equal ones the earlier. A loss that is
    no number counts as the largest, so that the step fails as it would without a selection."""
    order = np.argsort(-np.where(np.isnan(losses), np.inf, losses), kind="stable")
    return np.sort(order[:places])


def importance(losses: np.ndarray, places: int, floor: float, offset: float) -> Chosen:
    """`places` systematic draws; `offset` in [0, 1) is the one random number."""
    relative = relative_probabilities(losses, floor)
    ends = np.cumsum(relative)
    points = (np.arange(places) + offset) * (ends[-1] / places)
    # Rounding may put the last point at the very end.
    drawn = np.minimum(np.searchsorted(ends, points, side="right"), len(losses) - 1)
    return Chosen(drawn, (1.0 / relative[drawn]).astype(np.float32))


def relative_probabilities(losses: np.ndarray, floor: float) -> np.ndarray:
    """n * q, float64 [n]: how much more often than on average each candidate is drawn. They add up to n (to rounding),
    and none is below `floor`.

    If a loss is negative all are counted from the least one. If all are equal then, or zero, the draw is uniform. What
    is no finite number gets all that the floor leaves, so that the step fails as it would without a selection.
    """
    losses = np.asarray(losses, dtype=np.float64)
    lost = ~np.isfinite(losses)
    if lost.any():
        losses = lost.astype(np.float64)
    losses = losses - min(0.0, float(losses.min()))
    largest = float(losses.max())
    if largest == 0.0:
        return np.ones(len(losses))
    shares = losses / largest  # neither tiny nor huge losses overflow in the sum
    return floor + (1.0 - floor) * (len(losses) * shares / np.cumsum(shares)[-1])
