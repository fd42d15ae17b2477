"""Snapshots: host copies of a member's shard, its own and those of the members whose buddy it is.

A worker keeps them across views: they are what the next view's state is made of when this one breaks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from shoal.errors import CheckpointError
from shoal.membership.messages import Held, SnapshotKept
from shoal.membership.view import MemberId
from shoal.state.layout import Extent, Shard

WAITING = 2
"""Snapshots that may wait to be sent; a member that takes them faster than its buddy gets them is held up."""

Parcel = tuple[tuple[Extent, ...], dict[str, np.ndarray], dict[str, Any], dict[str, torch.Tensor]]
"""A shard whose large vectors are NumPy arrays, which travel through Ray without being copied into a pickle."""

Send = Callable[[MemberId | None, int, Parcel], float]
"""Bring the parcel of one step to a keeper (None: the buddy); returns when it is there, with the processor seconds that
it cost the keeper."""


class Snapshots:
    """What one worker keeps. Safe to call from any thread."""

    def __init__(self, member: MemberId) -> None:
        self._member = member
        self._lock = threading.Lock()
        self._shards: dict[Held, Shard] = {}

    def keep(self, name: Held, shard: Shard) -> None:
        """Keep a shard, this member's own or another's."""
        with self._lock:
            self._shards[name] = shard

    def get(self, name: Held) -> Shard:
        """Raises CheckpointError if it is not here, which only a coordinator that errs can ask for."""
        with self._lock:
            found = self._shards.get(name)
        if found is None:
            raise CheckpointError(f"worker {self._member} does not hold the snapshot {name}; please report this")
        return found

    def tidy(self, committed: int, view: int, first_step: int) -> None:
        """Drop what is not needed any more in view `view`, which began with `first_step`.

        Of each owner that is all but the newest that is not beyond `committed`. What earlier views made goes as soon as
        a step of this one is committed, for then its own snapshots are safe.
        """
        with self._lock:
            for owner in {h.owner for h in self._shards}:
                old = sorted(
                    h.step for h in self._shards if h.owner == owner and h.view == view and h.step <= committed
                )
                for step in old[:-1]:
                    del self._shards[Held(owner, view, step)]
            if committed >= first_step:
                for name in [h for h in self._shards if h.view != view]:
                    del self._shards[name]

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._shards.clear()

    @property
    def held(self) -> tuple[Held, ...]:
        """All that is kept."""
        with self._lock:
            return tuple(sorted(self._shards))


class Sender:
    """Brings one member's snapshots to its buddy in a thread, in order, in one view."""

    def __init__(self, send: Send, safe: Callable[[], None] = lambda: None) -> None:
        """`safe` is called when the first one has arrived: from then on steps of this view can be committed."""
        self._send, self._safe = send, safe
        self._queue: queue.Queue[tuple[MemberId | None, int, Shard] | None] = queue.Queue(maxsize=WAITING)
        self._lock = threading.Lock()
        self._kept: list[SnapshotKept] = []
        self._failed: BaseException | None = None
        self._idle = threading.Condition()
        self._waiting = 0
        self._thread: threading.Thread | None = None

    def submit(self, step: int, shard: Shard, keeper: MemberId | None = None) -> None:
        """Send `shard`, which must not be changed any more, to `keeper` (None: the buddy). Waits if too many wait."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shoal-snapshots", daemon=True)
            self._thread.start()
        with self._idle:
            self._waiting += 1
        self._queue.put((keeper, step, shard))

    def poll(self) -> list[SnapshotKept]:
        """What has arrived since the last call. Never waits."""
        with self._lock:
            done, self._kept = self._kept, []
        return done

    def drain(self, deadline_s: float) -> bool:
        """Wait until all that was submitted has arrived or failed; False if that takes longer."""
        with self._idle:
            return self._idle.wait_for(lambda: self._waiting == 0, timeout=deadline_s)

    def close(self) -> None:
        """Send nothing more. What is on its way may still arrive."""
        if self._thread is not None:
            try:
                self._queue.put_nowait(None)
            except queue.Full:
                self._failed = self._failed or RuntimeError("closed")

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            keeper, step, shard = item
            try:
                # After a failure the buddy is gone, and with it this view: nothing more can arrive.
                if self._failed is None:
                    self._deliver(keeper, step, shard)
            except Exception as error:  # noqa: BLE001 - a lost buddy is the coordinator's business: it sees it, too
                self._failed = error
            finally:
                del item, shard  # frees the host copy before the next wait
                with self._idle:
                    self._waiting -= 1
                    self._idle.notify_all()

    def _deliver(self, keeper: MemberId | None, step: int, shard: Shard) -> None:
        begun = time.thread_time()
        size = sum(t.numel() * 4 for t in shard.tensors.values())
        theirs = self._send(keeper, step, pack(shard))
        with self._lock:
            self._kept.append(SnapshotKept(step, time.thread_time() - begun + theirs, size))
        safe, self._safe = self._safe, lambda: None
        safe()


def pack(shard: Shard) -> Parcel:
    """A shard as it travels."""
    arrays = {key: tensor.numpy() for key, tensor in shard.tensors.items()}
    return shard.extents, arrays, shard.scalars, shard.buffers


def unpack(parcel: Parcel) -> Shard:
    """A shard in this process's own memory, from arrays that may lie in Ray's."""
    extents, arrays, scalars, buffers = parcel
    tensors = {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}
    return Shard(extents, tensors, scalars, buffers)
