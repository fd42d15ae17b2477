"""The worker's end of the feed: from ranges of positions to NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.data.columns import to_numpy
from shoal.data.stream import Located, stream_names
from shoal.errors import DataError, ShoalError

if TYPE_CHECKING:
    from shoal.data.mixture import Mixture


@dataclass(slots=True)
class _Block:
    """A block that this process knows; `columns` once it is mapped into memory."""

    located: Located
    columns: dict[str, np.ndarray] | None = None


class SliceReader:
    """Fetches slices through one feed. Not thread-safe: one reader per thread.

    It remembers the blocks it was told of, so that the feed is asked once per block and not once per step.
    """

    def __init__(self, feed: Any, *, blocks: int = 4, timeout_s: float = 600.0) -> None:
        """`feed` is the actor handle. At most `blocks` blocks of a stream stay mapped between calls. A read that takes
        longer than `timeout_s` seconds fails."""
        self._feed, self._limit, self._timeout_s = feed, blocks, timeout_s
        self._known: dict[str, list[_Block]] = {}

    def read(self, stream: str, ranges: Sequence[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
        """For each range [start, stop) of positions of `stream`: column name -> array [stop - start, ...].

        At most one call to the feed for all ranges; waits until they have been produced. The arrays are the caller's
        own and writable. Raises DataError if the pipeline failed, the positions do not exist, or nothing comes in time;
        TaskError if a transform failed.
        """
        import ray

        known = self._known.setdefault(stream, [])
        try:
            missing = [(start, stop) for start, stop in ranges if _cover(known, start, stop) is None]
            if missing:
                self._learn(known, ray.get(self._feed.locate.remote(stream, missing), timeout=self._timeout_s))
            return [self._gather(known, start, stop) for start, stop in ranges]
        except ray.exceptions.GetTimeoutError:
            raise DataError(
                f"no samples of the {stream} stream within {self._timeout_s:g} s (positions {list(ranges)}); the "
                f"storage is too slow or a node that read them is gone: look for Ray Data's messages in the driver's "
                f"log, raise data.cpus, or move the data nearer"
            ) from None
        except ray.exceptions.RayTaskError as error:
            from shoal.ray_compat import find_cause

            cause = find_cause(error, ShoalError)
            if cause is None:
                raise
            raise cause from None
        finally:
            del known[: -self._limit]  # the newest are at the end

    def _learn(self, known: list[_Block], located: Sequence[Located]) -> None:
        """Remember blocks, the newest last; let those on other nodes come while the first ones are being cut."""
        import ray

        old = {block.located.first: block for block in known}
        for new in located:
            block = old.get(new.first) or _Block(new)
            if block in known:
                known.remove(block)
            known.append(block)
        if len(located) > 1:
            refs = [new.ref for new in located]
            ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=True)

    def _gather(self, known: list[_Block], start: int, stop: int) -> dict[str, np.ndarray]:
        if start == stop:
            raise DataError("an empty range of positions has no samples; ask for at least one")
        blocks = _cover(known, start, stop)
        assert blocks is not None, "the feed locates every position it is asked for"
        parts = []
        for block in blocks:
            low, high = max(start, block.located.first), min(stop, block.located.stop)
            parts.append((self._columns(block), low - block.located.first, high - block.located.first))
        if len(parts) == 1:
            columns, low, high = parts[0]
            return {name: column[low:high].copy() for name, column in columns.items()}
        return {name: np.concatenate([columns[name][low:high] for columns, low, high in parts]) for name in parts[0][0]}

    def _columns(self, block: _Block) -> dict[str, np.ndarray]:
        import ray

        if block.columns is None:
            table: Any = ray.get(block.located.ref, timeout=self._timeout_s)
            block.columns = {name: to_numpy(name, table.column(name)) for name in table.column_names}
        return block.columns


class MixedReader:
    """Fetches slices of a mixture: each source's part from its own stream, put together in the mixture's order."""

    def __init__(self, reader: SliceReader, mixture: Mixture, streams: Sequence[str]) -> None:
        self._reader, self._mixture, self._streams = reader, mixture, streams

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
        """For each range of positions of the mixture: column name -> array [stop - start, ...]. As `SliceReader`."""
        spans = [self._mixture.ranges(start, stop) for start, stop in ranges]
        # A source's samples of all ranges in one call; a range may need none of them.
        parts: list[list[dict[str, np.ndarray] | None]] = [[None] * len(self._streams) for _ in ranges]
        for source, stream in enumerate(self._streams):
            wanted = [(i, span[source]) for i, span in enumerate(spans) if span[source][0] < span[source][1]]
            if wanted:
                found = self._reader.read(stream, [span for _, span in wanted])
                for (i, _), part in zip(wanted, found, strict=True):
                    parts[i][source] = part
        return [
            mixed(self._mixture.sources(start, stop), found) for (start, stop), found in zip(ranges, parts, strict=True)
        ]


def train_reader(feed: Any, mixture: Mixture | None) -> Callable[..., list[dict[str, np.ndarray]]]:
    """Reads ranges of positions of the training stream; for one thread."""
    reader = SliceReader(feed)
    if mixture is not None:
        return MixedReader(reader, mixture, stream_names("train", len(mixture.weights))).read
    return lambda ranges: reader.read("train", ranges)


def mixed(sources: np.ndarray, parts: Sequence[dict[str, np.ndarray] | None]) -> dict[str, np.ndarray]:
    """The samples of several sources, one after another where `sources` (int32 [n]) says which comes next."""
    present = [(source, part) for source, part in enumerate(parts) if part is not None]
    first = present[0][1]
    out = {name: np.empty((len(sources), *column.shape[1:]), column.dtype) for name, column in first.items()}
    for source, part in present:
        places = np.flatnonzero(sources == source)
        for name, column in part.items():
            if column.shape[1:] != out[name].shape[1:]:
                raise DataError(
                    f"column {name!r} has samples of shape {list(column.shape[1:])} in one source and "
                    f"{list(out[name].shape[1:])} in another; a batch needs one shape"
                )
            out[name][places] = column
    return out


def _cover(known: Sequence[_Block], start: int, stop: int) -> list[_Block] | None:
    """The known blocks that hold [start, stop), in order of position; None if a position is in none of them."""
    found, at = [], start
    while at < stop:
        block = next((b for b in known if b.located.start <= at < b.located.stop), None)
        if block is None:
            return None
        found.append(block)
        at = block.located.stop
    return found
