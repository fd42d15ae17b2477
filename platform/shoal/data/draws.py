"""Random numbers of samples: each is a function of (seed, what it is for, the sample's position) and of nothing else.

They are hashes by SplitMix64, `shoal.data.order.derive` for many positions at once, and so are the same whoever
computes them, in whatever portions, with any version of NumPy. Imports neither Ray nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.data.order import derive, derive_each, permutation

_SAMPLES, _PAIRS = 0x6175676D656E74, 0x7061697273  # "augment", "pairs": apart from the keys of orders, and each other


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of one purpose for the samples at positions [first, first + samples), whole virtual shards."""

    seed: int
    purpose: int
    first: int
    samples: int
    shard_size: int

    def uniform(self, number: int) -> np.ndarray:
        """float64 [samples] in [0, 1): the `number`-th random number of each sample."""
        return _unit(self._hashes(number))

    def uniforms(self, number: int, shape: tuple[int, ...], rows: Sequence[int] | slice = slice(None)) -> np.ndarray:
        """float64 [samples, *shape] in [0, 1), all under `number`; with `rows`, of those samples only."""
        own = self._hashes(number)[rows, None]
        return _unit(derive_each(own, np.arange(int(np.prod(shape))))).reshape(len(own), *shape)

    def below(self, number: int, limit: np.ndarray | int) -> np.ndarray:
        """int64 [samples], each evenly from range(limit); `limit` (below 2**32) may differ from sample to sample."""
        return np.floor(self.uniform(number) * limit).astype(np.int64)

    def beta(self, number: int, alpha: float) -> np.ndarray:
        """float64 [samples] from Beta(alpha, alpha), as multiples of 2**-16; takes the numbers `number` and the next.

        A Student t variable is sqrt(n (u**(-2/n) - 1)) cos(2 pi v) (Bailey 1994, "Polar generation of random variates
        with the t-distribution"), and t / sqrt(n + t**2) with n = 2 alpha is symmetric beta, from -1 to 1: any alpha,
        and nothing is drawn in vain. Rounded, so that the last bits of a machine's powers and cosines do not count.
        """
        u, turn = 1.0 - self.uniform(number), np.cos(2 * np.pi * self.uniform(number + 1))
        q = u ** (1 / alpha)
        square = (1 - q) * turn * turn
        return np.round(32768 * (1 + np.sign(turn) * np.sqrt(square / (square + q)))) / 65536

    def partners(self) -> np.ndarray:
        """int64 [samples]: for each sample another one of its virtual shard; each is the partner of exactly one."""
        out = np.empty(self.samples, dtype=np.int64)
        for start in range(0, self.samples, self.shard_size):
            key = derive(self.seed, _PAIRS, self.purpose, (self.first + start) // self.shard_size)
            ring = start + permutation(key, self.shard_size)
            out[ring] = np.roll(ring, -1)
        return out

    def _hashes(self, number: int) -> np.ndarray:
        positions = self.first + np.arange(self.samples, dtype=np.int64)
        own = derive_each(derive(self.seed, _SAMPLES, self.purpose), positions)
        return derive_each(own, np.array(number))


def uniform(seed: int, purpose: int, position: int) -> float:
    """In [0, 1): one random number for what begins at `position`."""
    return float(_unit(np.array(derive(seed, purpose, position), dtype=np.uint64)))


def _unit(hashes: np.ndarray) -> np.ndarray:
    """The upper 53 bits of uint64, as float64 in [0, 1)."""
    return (hashes >> np.uint64(11)) * 2.0**-53
