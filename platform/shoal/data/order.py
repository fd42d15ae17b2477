"""The order of samples, as arithmetic: a pure function of (seed, epoch, position).

Samples are rows of Parquet row groups. In every epoch the row groups are permuted; consecutive permuted groups are
gathered into *windows* of at least `window` samples (the last one of an epoch may be smaller); inside a window the
samples are permuted. Epochs follow each other without end: position p belongs to epoch p // N.

All permutations are stable argsorts of hashes by SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom
number generators"), computed here and not by a library whose streams may change from one release to the next. The
arithmetic has a version; a test pins its results. Imports neither Ray nor torch; memory is O(row groups).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from shoal.errors import DataError

ORDER_VERSION = 1
"""Changes whenever the same (seed, epoch, position) would give another sample."""

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_GROUPS, _WINDOW = 1, 2  # what a key is for, so that no two permutations share one
_EPOCHS_KEPT = 3


def derive(*parts: int) -> int:
    """A 64-bit key from integers; the order of the parts matters."""
    key = 0
    for part in parts:
        key = _mixed((key + _GAMMA + (part & _MASK)) & _MASK)
    return key


def permutation(key: int, n: int) -> np.ndarray:
    """A permutation of range(n) as int64 [n], chosen by the 64-bit `key`. O(n log n)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        x = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(key)
        for shift, factor in _MIX:
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Window:
    """Samples [start, stop) of the endless stream: the rows of `groups`, one group after another, permuted by `key`."""

    epoch: int
    index: int
    """Place in its epoch, from 0."""
    start: int
    stop: int
    groups: tuple[int, ...]
    key: int | None
    """None: file order."""

    @property
    def samples(self) -> int:
        return self.stop - self.start

    def permutation(self) -> np.ndarray | None:
        """int64 [samples]: which of the concatenated rows comes first, second, ...; None: as they stand."""
        return None if self.key is None else permutation(self.key, self.samples)


@dataclass(frozen=True, slots=True)
class _Epoch:
    """How one epoch is cut into windows. `bounds` are offsets in the epoch, `edges` places in `groups`."""

    groups: np.ndarray
    bounds: list[int]
    edges: list[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """The endless order of samples over row groups with `group_rows` rows each (every one at least 1)."""

    group_rows: tuple[int, ...] = field(repr=False)
    seed: int
    shuffle: bool = True
    window: int = 8192
    _epochs: dict[int, _Epoch] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.group_rows or min(self.group_rows) < 1 or self.window < 1:
            raise DataError("an order needs at least one row group, rows in every group, and window >= 1")

    @property
    def samples(self) -> int:
        """Samples in one epoch."""
        return sum(self.group_rows)

    def window_at(self, position: int) -> Window:
        """The window that holds `position` (>= 0) of the endless stream."""
        epoch, offset = divmod(position, self.samples)
        layout = self._layout(epoch)
        return self._window(epoch, layout, bisect_right(layout.bounds, offset) - 1)

    def windows(self, start: int, stop: int) -> Iterator[Window]:
        """The windows that together cover positions [start, stop), in order."""
        while start < stop:
            window = self.window_at(start)
            yield window
            start = window.stop

    def sample(self, position: int) -> tuple[int, int]:
        """(group, row in the group) at `position`. For tests and audits: O(window)."""
        window = self.window_at(position)
        at, order = position - window.start, window.permutation()
        row = at if order is None else int(order[at])
        for group in window.groups:
            if row < self.group_rows[group]:
                return group, row
            row -= self.group_rows[group]
        raise AssertionError("a window's groups hold all of its samples")

    def _window(self, epoch: int, layout: _Epoch, index: int) -> Window:
        base = epoch * self.samples
        first, last = layout.edges[index], layout.edges[index + 1]
        return Window(
            epoch=epoch,
            index=index,
            start=base + layout.bounds[index],
            stop=base + layout.bounds[index + 1],
            groups=tuple(layout.groups[first:last].tolist()),
            key=derive(self.seed, epoch, _WINDOW, index) if self.shuffle else None,
        )

    def _layout(self, epoch: int) -> _Epoch:
        known = self._epochs.get(epoch)
        if known is not None:
            return known
        count = len(self.group_rows)
        groups = permutation(derive(self.seed, epoch, _GROUPS), count) if self.shuffle else np.arange(count)
        ends = np.cumsum(np.asarray(self.group_rows, dtype=np.int64)[groups]).tolist()
        bounds, edges = [0], [0]
        for i, end in enumerate(ends):
            if end - bounds[-1] >= self.window or i == count - 1:
                bounds.append(end)
                edges.append(i + 1)
        layout = _Epoch(groups, bounds, edges)
        while len(self._epochs) >= _EPOCHS_KEPT:
            self._epochs.pop(next(iter(self._epochs)), None)
        self._epochs[epoch] = layout
        return layout


class _Data(Protocol):
    """What a cursor checks itself against; a `Catalog` is one."""

    @property
    def samples(self) -> int: ...
    @property
    def digest(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """A few bytes from which the data order can be continued exactly."""

    position: int
    """The next sample of the endless stream."""
    seed: int
    samples: int
    """Samples in one epoch."""
    digest: str
    """Digest of the data."""
    shuffle: bool | None = None
    """None: was not recorded, and is not checked."""
    window: int | None = None
    """None: was not recorded, and is not checked."""
    version: int = ORDER_VERSION

    def to_json(self) -> dict[str, Any]:
        """A JSON value; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cursor:
        """Raises DataError if `value` is no cursor, or one of an order that this release does not know."""
        known = {f.name for f in fields(cls)}
        try:
            cursor = cls(**{k: v for k, v in value.items() if k in known})
        except TypeError as error:
            raise DataError(f"not a data cursor: {value!r} ({error}); the checkpoint is damaged or foreign") from None
        if cursor.version != ORDER_VERSION:
            raise DataError(
                f"the cursor's order has version {cursor.version}, this release computes version {ORDER_VERSION}, so "
                f"the samples would come in another order; continue with the release that wrote the checkpoint"
            )
        return cursor

    def check(self, data: _Data, order: Order | None = None) -> None:
        """Raise DataError unless `data` (and `order`, where it is given) are those that the cursor was made for."""
        if (self.samples, self.digest) != (data.samples, data.digest):
            raise DataError(
                f"the training data changed since the checkpoint: it had {self.samples} samples (digest "
                f"{self.digest[:12]}), now {data.samples} (digest {data.digest[:12]}). Position {self.position} would "
                f"mean other samples; bring the old data back, or start a new run from the checkpoint's model"
            )
        if order is None:
            return
        for name, value in (("seed", self.seed), ("data.shuffle", self.shuffle), ("data.window", self.window)):
            now = getattr(order, name.removeprefix("data."))
            if value is not None and value != now:
                raise DataError(
                    f"{name}={now} differs from the checkpoint's {name}={value}, so samples of the epoch would be lost "
                    f"and repeated; set {name}={value}, or start a new run from the checkpoint's model"
                )


def _mixed(x: int) -> int:
    for shift, factor in _MIX:
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> 31)
