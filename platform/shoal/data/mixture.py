"""Which source each sample of a mixture comes from, as arithmetic. Imports neither Ray nor torch.

Positions are cut into blocks of n samples. In a block source k gives floor(n*W[k] + u) - floor(n*W[k-1] + u) samples, W
being the running sum of the weights and u in [0, 1) that block's offset: never less than none, together exactly n, and
over many blocks as many as the weights say, because the offsets are spread evenly (multiples of the golden ratio modulo
1; Weyl 1916). Inside a block a keyed permutation mixes the sources; each source's own samples come in its own order,
without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shoal.data.order import derive, permutation
from shoal.errors import ConfigError
from shoal.job.sampling import Weight

MIXTURE_VERSION = 1
"""Changes whenever the same (weights, seed, position) would give another source."""

_ONE = 1 << 32
_GOLDEN = 0x9E3779B9
_BLOCKS, _OFFSETS = 3, 4  # what a key is for
_CHUNK = 4096
"""Blocks whose counts are added up at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """The endless stream of a mixture of `len(weights)` sources."""

    weights: tuple[Weight, ...]
    """Relative; they need not add up to 1."""
    block: int
    """Samples in a block; a step's batch."""
    total: int
    """Samples in the whole budget: what progress is a fraction of."""
    seed: int
    _before: list[np.ndarray] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for at in (0.0, 1.0, *(p for w in self.weights if isinstance(w, tuple) for p, _ in w)):
            if not sum(weight_at(w, at) for w in self.weights) > 0:
                raise ConfigError(f"at progress {at:g} all sources have weight 0; give at least one of them a weight")

    def locate(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Of positions [start, stop): the source of each (int32 [n]) and its position in that source's own endless
        stream (int64 [n]). Positions of one source follow each other without a gap."""
        sources = self.sources(start, stop)
        places = np.empty(len(sources), np.int64)
        for source, (first, end) in enumerate(self.ranges(start, stop)):
            places[sources == source] = np.arange(first, end)
        return sources, places

    def sources(self, start: int, stop: int) -> np.ndarray:
        """The source of each of positions [start, stop), int32 [n]: all that is needed to put parts together."""
        first = start // self.block
        blocks = [self._sources_of(block) for block in range(first, -(-stop // self.block))]
        found = np.concatenate([np.empty(0, np.int32), *blocks])
        return found[start - first * self.block : stop - first * self.block]

    def ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """For each source, the range of its own positions that positions [start, stop) use."""
        return list(zip(self.used(start), self.used(stop), strict=True))

    def used(self, position: int) -> list[int]:
        """How many samples of each source come before `position`."""
        block, rest = divmod(position, self.block)
        used = self.before(block)
        if rest:
            used = used + np.bincount(self._sources_of(block)[:rest], minlength=len(self.weights))
        return used.tolist()

    def before(self, block: int) -> np.ndarray:
        """int64 [sources]: how many samples of each come before `block`."""
        chunk, rest = divmod(block, _CHUNK)
        while len(self._before) <= chunk:
            last = len(self._before)
            total = self._before[-1] + self._counts((last - 1) * _CHUNK, last * _CHUNK).sum(0) if last else 0
            self._before.append(np.zeros(len(self.weights), np.int64) + total)
        return self._before[chunk] + self._counts(block - rest, block).sum(0)

    def _sources_of(self, block: int) -> np.ndarray:
        counts = self._counts(block, block + 1)[0]
        sorted_sources = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return sorted_sources[permutation(derive(self.seed, _BLOCKS, block), self.block)]

    def _counts(self, first: int, last: int) -> np.ndarray:
        """int64 [last - first, sources]: samples of each source in each of these blocks."""
        blocks = np.arange(first, last, dtype=np.uint64)
        offsets = (blocks * np.uint64(_GOLDEN) + np.uint64(derive(self.seed, _OFFSETS) % _ONE)) % np.uint64(_ONE)
        ends = (self._running(blocks) * np.uint64(self.block) + offsets[:, None]) >> np.uint64(32)
        return np.diff(ends.astype(np.int64), axis=1)

    def _running(self, blocks: np.ndarray) -> np.ndarray:
        """uint64 [blocks, sources + 1]: running sums of the weights in units of 2**-32, from 0 to 1."""
        progress = np.minimum(blocks.astype(np.float64) * self.block / max(1, self.total), 1.0)
        weights = np.stack([_along(w, progress) for w in self.weights], axis=1)
        sums = np.cumsum(weights, axis=1)
        shares = np.floor(sums / sums[:, -1:] * _ONE).astype(np.uint64)
        shares[:, -1] = _ONE
        return np.concatenate([np.zeros((len(blocks), 1), np.uint64), shares], axis=1)


def weight_at(weight: Weight, progress: float) -> float:
    """The weight of a source at `progress` in [0, 1]."""
    return float(_along(weight, np.asarray([progress]))[0])


def by_size(weights: Sequence[Weight], samples: Sequence[int], temperature: float) -> tuple[Weight, ...]:
    """Weights times the size of each source to the power of 1 / `temperature`: 1 is in proportion, larger evens out
    (Arivazhagan et al. 2019, "Massively multilingual neural machine translation in the wild")."""
    sizes = [float(n) ** (1.0 / temperature) for n in samples]
    return tuple(
        tuple((p, w * size) for p, w in weight) if isinstance(weight, tuple) else weight * size
        for weight, size in zip(weights, sizes, strict=True)
    )


def _along(weight: Weight, progress: np.ndarray) -> np.ndarray:
    if not isinstance(weight, tuple):
        return np.full(len(progress), float(weight))
    points = sorted(weight)
    return np.interp(progress, [p for p, _ in points], [w for _, w in points])
