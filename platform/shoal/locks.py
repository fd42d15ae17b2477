"""Locks between processes, on files. They end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def lock_descriptor(descriptor: int, wait_s: float) -> bool:
    """Lock an open file for this process, waiting at most `wait_s` seconds; False if another one kept it.

    A file system that has no locks (some network mounts) counts as locked: refusing to train there would be worse
    than trusting that each run has one coordinator.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return True
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)


@contextmanager
def file_lock(path: Path, wait_s: float) -> Iterator[bool]:
    """Hold the lock file `path` inside the block; the value says whether it was got within `wait_s` seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield lock_descriptor(descriptor, wait_s)
    finally:
        os.close(descriptor)
