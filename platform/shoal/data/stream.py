"""A stream of blocks between one pump thread and the feed's event loop: positions, back-pressure, release. No Ray."""

from __future__ import annotations

import asyncio
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from shoal.errors import DataError, ShoalError


def stream_names(train: str, count: int) -> list[str]:
    """Names of the streams of `count` sources."""
    return [train] if count == 1 else [f"{train}/{i}" for i in range(count)]


class Located(NamedTuple):
    """A block and the positions that may be taken from it: [start, stop); its first row has position `first`."""

    ref: Any
    first: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """Where a stream stands. Positions are in the endless stream of epochs; sizes in bytes."""

    name: str
    produced: int
    """First position that is not there yet."""
    released: int
    """First position that may still be located."""
    stop: int
    """End of the stream."""
    held_bytes: int
    held_blocks: int
    error: str | None

    @property
    def ahead(self) -> int:
        """Samples that have been produced and not yet released."""
        return max(0, self.produced - self.released)


@dataclass(frozen=True, slots=True)
class _Held:
    start: int
    stop: int
    ref: Any
    nbytes: int


@dataclass(slots=True)
class _Waiter:
    stop: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]

    def wake(self) -> None:
        self.loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Stream:
    """Blocks of positions [start, stop).

    The pump calls `put`, which blocks while `limit` bytes are held and nobody waits for more: a request that needs
    more than the limit is served all the same, so the two can never wait for each other.
    """

    def __init__(self, name: str, *, first: int, start: int, stop: int, limit: int | None) -> None:
        """`first` is where the first block begins (at or before `start`). `limit`: None holds everything."""
        self.name, self.start, self.stop = name, start, stop
        self._limit = limit
        self._changed = threading.Condition()
        self.wanted = threading.Event()
        """Not set: `put` waits, because enough is held."""
        self.wanted.set()
        self._blocks: list[_Held] = []
        self._starts: list[int] = []
        self._waiters: list[_Waiter] = []
        self._produced, self._released = first, start
        self._held = 0
        self._error: ShoalError | None = None
        self._closed = False

    def put(self, ref: Any, rows: int, nbytes: int) -> bool:
        """Add the next block (pump thread). False: the stream is closed, stop pumping."""
        with self._changed:
            stop = self._produced + rows
            if stop > self._released:
                self._blocks.append(_Held(self._produced, stop, ref, nbytes))
                self._starts.append(self._produced)
                self._held += nbytes
            self._produced = stop
            self._wake()
            while self._full() and not self._closed:
                self.wanted.clear()
                self._changed.wait()
            self.wanted.set()
            return not self._closed

    def fail(self, error: ShoalError) -> None:
        """The pump cannot go on: everybody who waits, or asks later for what is not there, gets `error`."""
        with self._changed:
            self._error = error
            self._wake()

    def close(self) -> None:
        """Drop all blocks, end the pump, refuse further requests."""
        with self._changed:
            self._closed = True
            self._error = self._error or DataError(f"the {self.name} stream is closed")
            self._blocks.clear()
            self._starts.clear()
            self._held = 0
            self._wake()
            self._changed.notify_all()

    async def locate(self, ranges: Sequence[tuple[int, int]]) -> list[Located]:
        """The blocks that hold `ranges`, each once, in order; waits until the last one has been produced.

        Raises DataError for positions outside the stream or already released, and for a failed pipeline.
        """
        with self._changed:
            for start, stop in ranges:
                self._check(start, stop)
            last = max((stop for _, stop in ranges), default=self._produced)
            waiter = None
            if last > self._produced and self._error is None:
                loop = asyncio.get_running_loop()
                waiter = _Waiter(last, loop, loop.create_future())
                self._waiters.append(waiter)
                self._changed.notify_all()  # the pump may be holding back
        if waiter is not None:
            try:
                await waiter.future
            finally:  # also when the caller went away
                with self._changed:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
        with self._changed:
            if self._error is not None and (self._closed or last > self._produced):
                raise self._error
            return self._blocks_of(ranges)

    def release(self, position: int) -> None:
        """Drop the blocks wholly before `position`; nothing before it can be located any more."""
        with self._changed:
            self._released = max(self._released, position)
            count = 0
            while count < len(self._blocks) and self._blocks[count].stop <= self._released:
                self._held -= self._blocks[count].nbytes
                count += 1
            if count:
                del self._blocks[:count], self._starts[:count]
                self._changed.notify_all()

    def status(self) -> StreamStatus:
        with self._changed:
            return StreamStatus(
                name=self.name,
                produced=self._produced,
                released=self._released,
                stop=self.stop,
                held_bytes=self._held,
                held_blocks=len(self._blocks),
                error=None if self._error is None else str(self._error),
            )

    def _full(self) -> bool:
        if self._limit is None or self._held < self._limit:
            return False
        return all(waiter.stop <= self._produced for waiter in self._waiters)

    def _wake(self) -> None:
        for waiter in [w for w in self._waiters if w.stop <= self._produced or self._error is not None]:
            self._waiters.remove(waiter)
            waiter.wake()

    def _check(self, start: int, stop: int) -> None:
        if not self._released <= start <= stop <= self.stop:
            raise DataError(
                f"positions [{start}, {stop}) of the {self.name} stream were asked for, but it runs from {self.start} "
                f"to {self.stop} and those before {self._released} have been released"
            )

    def _blocks_of(self, ranges: Sequence[tuple[int, int]]) -> list[Located]:
        found: set[int] = set()
        for start, stop in ranges:
            self._check(start, stop)  # time has passed
            if start < stop:
                found.update(range(bisect_right(self._starts, start) - 1, bisect_left(self._starts, stop)))
        return [
            Located(b.ref, b.start, max(b.start, self._released), min(b.stop, self.stop))
            for b in (self._blocks[i] for i in sorted(found))
        ]
