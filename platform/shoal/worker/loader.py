"""Fetches the samples of coming leases in a thread of its own, so that the training loop finds them ready."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.digests import shard_digests
from shoal.membership.view import Lease

DEPTH = 4
"""Steps that may lie ready. Two would do if every fetch took the same time; the rest absorbs a slow one."""

Samples = dict[str, np.ndarray]
"""Column by column, each array of shape [samples, ...]."""
Read = Callable[[Sequence[tuple[int, int]]], list[Samples]]
"""Ranges of positions -> their samples."""
Augment = Callable[[Samples, int, int, float], Samples]
"""As `shoal.data.augment.augmenter` gives it; leaves the given arrays as they are."""


@dataclass(frozen=True, slots=True)
class Work:
    """A lease and its samples, in the order of its virtual shards."""

    lease: Lease
    samples: Samples
    """As the model sees them."""
    digests: str
    """Of the samples' bytes as they were read, one per virtual shard: what the ledger proves the order with, and an
    audit finds again in the data."""


class Loader:
    """Turns leases into work."""

    def __init__(
        self,
        leases: queue.Queue[Lease | BaseException | None],
        read: Read,
        augment: Augment = lambda samples, *_: samples,
    ) -> None:
        self._leases, self._read, self._augment = leases, read, augment
        self._ready: queue.Queue[Work | BaseException | None] = queue.Queue(maxsize=DEPTH)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="shoal-loader", daemon=True)
        self.waited_s = 0.0
        """Seconds that the last `next()` waited."""

    def start(self) -> None:
        self._thread.start()

    def next(self) -> Work | None:
        """The next step's work; None when the view ends. Raises what stopped the courier or the feed."""
        begun = time.perf_counter()
        item = self._ready.get()
        self.waited_s = time.perf_counter() - begun
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self, reason: BaseException | None = None) -> None:
        """Stop. Whoever waits in `next()` gets `reason`. The thread ends as soon as the read that it is in returns."""
        self._closed = True
        self._leases.put(None)
        self._clear()
        if reason is not None:
            self._ready.put_nowait(reason)

    def _clear(self) -> None:
        try:
            while True:
                self._ready.get_nowait()
        except queue.Empty:
            pass

    def _run(self) -> None:
        while not self._closed:
            batch, stop = self._take()
            try:
                # One call for all leases at hand: the cost of a remote call is per call, not per range.
                found = self._read([(lease.start, lease.stop) for lease in batch]) if batch else []
                work = [self._work(lease, samples) for lease, samples in zip(batch, found, strict=True)]
            except Exception as error:  # noqa: BLE001 - handed to the training loop, which is the one that can act
                self._put(error)
                return
            for item in work:
                self._put(item)
            if stop is not _GO_ON:
                self._put(stop)  # type: ignore[arg-type]
                return

    def _work(self, lease: Lease, samples: Samples) -> Work:
        shards = lease.shards[1] - lease.shards[0]
        digests = shard_digests(samples, shards)
        shard_size = (lease.stop - lease.start) // shards
        return Work(lease, self._augment(samples, lease.start, shard_size, lease.progress[0]), digests)

    def _put(self, item: Work | BaseException | None) -> None:
        while not self._closed:
            try:
                self._ready.put(item, timeout=1.0)
                return
            except queue.Full:
                continue

    def _take(self) -> tuple[list[Lease], object]:
        """At least one lease and at most DEPTH of those waiting; then the end, an error, or `_GO_ON`."""
        batch: list[Lease] = []
        while len(batch) < DEPTH:
            try:
                item = self._leases.get(block=not batch)
            except queue.Empty:
                break
            if not isinstance(item, Lease):
                return batch, item
            batch.append(item)
        return batch, _GO_ON


_GO_ON = object()
