"""The order of samples, as arithmetic: a pure function of (seed, epoch, position).

Samples are rows of Parquet row groups. In every epoch the row groups are permuted; consecutive permuted groups are
gathered into *windows* of at least `window` samples (the last one of an epoch may be smaller); inside a window the
samples are permuted. Epochs follow each other without end: position p belongs to epoch p // N. With a curriculum an
epoch is a pass over the rows that are easy enough at its beginning, so that the first epochs are shorter. With
replacement every place of a window draws one of the window's rows, whatever the others have drawn.

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
_GROUPS, _WINDOW = 1, 2  # what a key is for, so that no two permutations share one (3 and 4: the mixture's)
_EPOCHS_KEPT = 3


def derive(*parts: int) -> int:
    """A 64-bit key from integers; the order of the parts matters."""
    key = 0
    for part in parts:
        key = _mixed((key + _GAMMA + (part & _MASK)) & _MASK)
    return key


def permutation(key: int, n: int) -> np.ndarray:
    """A permutation of range(n) as int64 [n], chosen by the 64-bit `key`. O(n log n)."""
    return np.argsort(_hashes(key, n), kind="stable").astype(np.int64)


def draws(key: int, n: int) -> np.ndarray:
    """n numbers of range(n), each drawn alone, as int64 [n]. The larger half of a hash decides, as good as evenly."""
    return ((_hashes(key, n) >> np.uint64(32)) * np.uint64(n) >> np.uint64(32)).astype(np.int64)


def derive_each(keys: np.ndarray | int, parts: np.ndarray) -> np.ndarray:
    """`derive(*before, part)` as uint64 for each of `parts` (int64, of any shape); `keys` is `derive(*before)`, one for
    all or one for each, and broadcasts."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        return _mixed_each(np.asarray(keys, dtype=np.uint64) + np.uint64(_GAMMA) + np.asarray(parts).astype(np.uint64))


def _hashes(key: int, n: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return _mixed_each(np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(key))


def _mixed_each(x: np.ndarray) -> np.ndarray:
    """`_mixed` of each, uint64; products wrap around."""
    for shift, factor in _MIX:
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


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
    replacement: bool = False
    limit: int | None = None
    """Curriculum: of each group only the rows that rank below this take part; None: all."""

    @property
    def samples(self) -> int:
        return self.stop - self.start

    def permutation(self) -> np.ndarray | None:
        """int64 [samples]: which of the concatenated rows comes first, second, ...; None: as they stand."""
        if self.key is None:
            return None
        return draws(self.key, self.samples) if self.replacement else permutation(self.key, self.samples)


class Pacing(Protocol):
    """Which rows are easy enough, at any time: what a curriculum tells the order (`data.curriculum`)."""

    def limit(self, position: int) -> int:
        """Rows that rank below this take part in a pass that begins at `position`."""
        ...

    def counts(self, limit: int) -> np.ndarray:
        """int64 [groups]: how many rows of each group rank below `limit`."""
        ...

    def rows(self, group: int, limit: int) -> np.ndarray:
        """int64 [count]: those rows of `group`, ascending."""
        ...


@dataclass(frozen=True, slots=True)
class _Epoch:
    """How one epoch is cut into windows. `bounds` are offsets in the epoch, `edges` places in `groups`."""

    start: int
    limit: int | None
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
    replacement: bool = False
    pacing: Pacing | None = field(default=None, repr=False, compare=False)
    _epochs: dict[int, _Epoch] = field(default_factory=dict, init=False, repr=False, compare=False)
    _starts: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.group_rows or min(self.group_rows) < 1 or self.window < 1:
            raise DataError("an order needs at least one row group, rows in every group, and window >= 1")
        if self.replacement and not self.shuffle:
            raise DataError("drawing with replacement needs data.shuffle=true")

    @property
    def samples(self) -> int:
        """Rows of the data set: samples in one epoch, or, with a curriculum, in the longest."""
        return sum(self.group_rows)

    def epoch_of(self, position: int) -> int:
        """The epoch that `position` belongs to."""
        if self.pacing is None:
            return position // self.samples
        starts = self._starts
        while starts[-1] <= position:
            starts.append(starts[-1] + int(self.pacing.counts(self.pacing.limit(starts[-1])).sum()))
        return bisect_right(starts, position) - 1

    def window_at(self, position: int) -> Window:
        """The window that holds `position` (>= 0) of the endless stream."""
        epoch = self.epoch_of(position)
        layout = self._layout(epoch)
        return self._window(epoch, layout, bisect_right(layout.bounds, position - layout.start) - 1)

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
            rows = self.rows(window, group)
            count = self.group_rows[group] if rows is None else len(rows)
            if row < count:
                return group, row if rows is None else int(rows[row])
            row -= count
        raise AssertionError("a window's groups hold all of its samples")

    def rows(self, window: Window, group: int) -> np.ndarray | None:
        """int64 [count]: the rows of `group` that take part in `window`, ascending; None: all."""
        if window.limit is None:
            return None
        assert self.pacing is not None, "only a curriculum sets a limit"
        return self.pacing.rows(group, window.limit)

    def _window(self, epoch: int, layout: _Epoch, index: int) -> Window:
        first, last = layout.edges[index], layout.edges[index + 1]
        return Window(
            epoch=epoch,
            index=index,
            start=layout.start + layout.bounds[index],
            stop=layout.start + layout.bounds[index + 1],
            groups=tuple(layout.groups[first:last].tolist()),
            key=derive(self.seed, epoch, _WINDOW, index) if self.shuffle else None,
            replacement=self.replacement,
            limit=layout.limit,
        )

    def _layout(self, epoch: int) -> _Epoch:
        known = self._epochs.get(epoch)
        if known is not None:
            return known
        count = len(self.group_rows)
        start, limit, rows = epoch * self.samples, None, np.asarray(self.group_rows, dtype=np.int64)
        if self.pacing is not None:
            start = self._starts[epoch]
            limit = self.pacing.limit(start)
            rows = self.pacing.counts(limit)
        groups = permutation(derive(self.seed, epoch, _GROUPS), count) if self.shuffle else np.arange(count)
        groups = groups[rows[groups] > 0]  # a group without a row that takes part is not read
        count = len(groups)
        ends = np.cumsum(rows[groups]).tolist()
        bounds, edges = [0], [0]
        for i, end in enumerate(ends):
            if end - bounds[-1] >= self.window or i == count - 1:
                bounds.append(end)
                edges.append(i + 1)
        layout = _Epoch(start, limit, groups, bounds, edges)
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
    options: str = ""
    """Digest of what else decides which samples are used: a mixture, a curriculum, a selection, replacement
    (`data.training.order_digest`)."""
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

    def check(self, data: _Data, now: Cursor | None = None) -> None:
        """Raise DataError unless `data` is that for which the cursor was made, and `now`, the job's, is its order."""
        if (self.samples, self.digest) != (data.samples, data.digest):
            raise DataError(
                f"the training data changed since the checkpoint: it had {self.samples} samples (digest "
                f"{self.digest[:12]}), now {data.samples} (digest {data.digest[:12]}). Position {self.position} would "
                f"mean other samples; bring the old data back"
            )
        if now is None:
            return
        for name, value in (("seed", self.seed), ("data.shuffle", self.shuffle), ("data.window", self.window)):
            asked = getattr(now, name.removeprefix("data."))
            if value is not None and value != asked:
                raise DataError(
                    f"{name}={asked} differs from the checkpoint's {name}={value}, so samples of the epoch would be "
                    f"lost and repeated; set {name}={value}"
                )
        if self.options != now.options:
            raise DataError(
                "the sources, their weights, the curriculum, the selection, data.replacement or the budget that they "
                "depend on are not those of the checkpoint, so samples would be lost and repeated; bring the old "
                "values back"
            )


def _mixed(x: int) -> int:
    for shift, factor in _MIX:
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> 31)
