"""Waiting for a collective in a way that can be given up.

`Work.wait` blocks in C++ until the collective is over, has failed, or is out of time. When its connections end it fails
at once, with one exception: gloo never wakes who waits for a message of which a part has arrived, nor who waits for one
to be sent of which a part has gone, though the rest can never come. A peer that dies in the middle of a large message
would keep its neighbour for the whole time-out of the group. So while a view lasts, Python's waits are these:

* for a collective, in slices: one of those may end without harm;
* for a transfer, whose wait must not be interrupted, by a helper thread, while the caller waits for the helper or the
  cut, whichever comes first. A helper whose message never ends is left behind; the group's time-out ends it.

DDP waits in C++, for all-reduces, whose last message is small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch.distributed as dist

SLICE = timedelta(milliseconds=20)
"""How long a cut may go unnoticed."""

_WAIT = "wait"
_native = dist.Work.wait


class _Helper:
    """A thread that waits for one transfer at a time."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[dist.Work, SimpleQueue[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="shoal-wait", daemon=True).start()

    def begin(self, work: dist.Work, answer: SimpleQueue[Any]) -> None:
        self._tasks.put((work, answer))

    def end(self) -> None:
        """Stop as soon as the work at hand is over."""
        self._tasks.put(None)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, answer = task
            try:
                answer.put(_native(work))
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                answer.put(error)
            del task, work, answer  # a tensor must not live until the next wait


class Waits:
    """The waits of one view, from any thread.

    `failed` is called when a collective has failed, before that is raised. `on_device`: collectives of tensors on a GPU
    are only queued by their wait, which therefore need not be given up.
    """

    def __init__(self, failed: Callable[[], None], *, on_device: bool) -> None:
        self._failed, self._on_device = failed, on_device
        self._lock = threading.Lock()
        self._idle: list[_Helper] = []
        self._answers: set[SimpleQueue[Any]] = set()
        self._over: Exception | None = None

    def install(self) -> None:
        """From now on `Work.wait` is `wait`, in the whole process."""
        setattr(dist.Work, _WAIT, lambda work, *limit: self.wait(work, *limit))

    def wait(self, work: dist.Work, *limit: timedelta) -> Any:
        """What `Work.wait` promises. Raises DistError when the collective fails or the view is cut."""
        if self._over is not None:
            raise self._cut_error()
        try:
            if limit or not _has_future(work):
                return _native(work, *limit) if limit else self._wait_for_transfer(work)
            return _native(work) if self._on_device else self._wait_in_slices(work)
        except RuntimeError as error:
            if self._over is not None:
                raise self._cut_error() from None
            self._failed()
            raise dist.DistBackendError(str(error)) from None

    def cut(self, reason: str) -> None:
        """Make all waits fail, those of now and those to come."""
        with self._lock:
            self._over = self._over or dist.DistBackendError(reason)
            for answer in self._answers:
                answer.put(self._over)
            self._release()

    def close(self) -> None:
        """The view is over; waits are torch's own again."""
        setattr(dist.Work, _WAIT, _native)
        self._failed = _nothing  # no circle: what a view has held goes with it, not at some later collection
        with self._lock:
            self._over = self._over or dist.DistBackendError("the group is gone")
            self._release()

    def _wait_in_slices(self, work: dist.Work) -> Any:
        while not work.is_completed():
            try:
                return _native(work, SLICE)
            except RuntimeError:
                if self._over is not None:
                    raise
        return _native(work)  # it does not wait any more, but says how it went

    def _wait_for_transfer(self, work: dist.Work) -> Any:
        answer: SimpleQueue[Any] = SimpleQueue()
        with self._lock:
            if self._over is not None:
                raise self._over
            self._answers.add(answer)
            helper = self._idle.pop() if self._idle else _Helper()
        helper.begin(work, answer)
        result = answer.get()
        with self._lock:
            self._answers.discard(answer)
            if self._over is None:
                self._idle.append(helper)
            else:
                helper.end()
        if isinstance(result, Exception):
            raise result
        return result

    def _cut_error(self) -> Exception:
        return dist.DistBackendError(str(self._over))

    def _release(self) -> None:
        while self._idle:
            self._idle.pop().end()


def _nothing() -> None:
    """Nobody is to be told any more."""


def _has_future(work: dist.Work) -> bool:
    """Whether this is a collective. Transfers of gloo have no future."""
    try:
        work.get_future()
    except RuntimeError:
        return False
    return True
