"""Writes a member's shards to durable storage beside the training, in one background thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.errors import CheckpointError
from shoal.membership.messages import ShardWritten
from shoal.state.layout import Shard
from shoal.state.shard_file import write_shard
from shoal.state.storage import Storage
from shoal.state.store import step_folder

if TYPE_CHECKING:
    import pyarrow.fs as pafs


@dataclass(frozen=True, slots=True)
class _Order:
    step: int
    shard: Shard
    base_uri: str
    rank: int
    size: int


class AsyncShardWriter:
    """One shard is being written, one may wait; every `submit` is answered by exactly one ShardWritten, in order.

    When storage is slower than the checkpoints come, `submit` waits: skipping would leave memory as bounded, but
    members that skip different steps would never complete a checkpoint together. After `patience_s` that checkpoint
    is given up (its ShardWritten says so) and training goes on. The final one is never given up: it takes a place
    of its own. The thread lives while there is something to write; there is nothing to close.
    """

    def __init__(self, filesystem: pafs.FileSystem | None = None, *, patience_s: float = 120.0) -> None:
        self._filesystem = filesystem
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._waiting: deque[_Order] = deque()
        self._thread: threading.Thread | None = None
        self._done: list[ShardWritten] = []

    def submit(self, step: int, shard: Shard, base_uri: str, rank: int, size: int, *, final: bool = False) -> None:
        """Hand over a shard of the checkpoint after `step`; it must not be changed afterwards. Raises nothing."""
        with self._changed:
            room = final or self._changed.wait_for(lambda: not self._waiting, timeout=self._patience_s)
            if not room:
                self._done.append(
                    ShardWritten(
                        step=step,
                        error=f"checkpoint of step {step} is given up: the one before it has waited for storage at "
                        f"{base_uri} for {self._patience_s:g} s; raise checkpoints.every or use faster storage",
                    )
                )
                return
            self._waiting.append(_Order(step, shard, base_uri, rank, size))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shoal-checkpoint", daemon=True)
                self._thread.start()

    def poll(self) -> list[ShardWritten]:
        """What was finished since the last call, in order. Never waits."""
        with self._changed:
            done, self._done = self._done, []
        return done

    def drain(self, deadline_s: float) -> bool:
        """Wait until all that was submitted is finished; False if that takes longer than `deadline_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout=deadline_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    self._changed.notify_all()
                    return
                order = self._waiting.popleft()
                self._changed.notify_all()
            written = self._write(order)
            del order  # frees the host copy before the next wait
            with self._changed:
                self._done.append(written)

    def _write(self, order: _Order) -> ShardWritten:
        began = time.perf_counter()
        try:
            folder = Storage(order.base_uri, self._filesystem).child(step_folder(order.step))
            entry = write_shard(folder, order.shard, step=order.step, rank=order.rank, size=order.size)
        except CheckpointError as error:
            return ShardWritten(step=order.step, error=str(error), seconds=time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001 - a thread has no caller: whatever it is must reach the coordinator
            reason = f"checkpoint of step {order.step} failed: {type(error).__name__}: {error}"
            return ShardWritten(step=order.step, error=reason, seconds=time.perf_counter() - began)
        return ShardWritten(
            step=order.step,
            files=(entry.to_dict(),),
            scalars=order.shard.scalars,
            seconds=time.perf_counter() - began,
        )
