"""Gloo's sockets in this process, and how to make everything that waits on them fail at once.

Gloo cannot be interrupted, but it ends a wait with an error when its connection ends, and a connection can be ended
from any thread, through a duplicate of its descriptor. What matters is to end gloo's and no others, because Ray opens
and closes sockets in this process at any time. They are told apart by what gloo itself makes of them:

* a connected pair carries its group's time-out as send and receive time-out, and `marked` makes that a value that
  nobody else has;
* a pair that is still dialling has options that gloo sets and gRPC does not;
* a pair that waits to be dialled has no socket yet, and waits for one that proves to be its peer by a number from 0 on.
  So it is dialled from here, and hung up on.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

QUIET_S = 0.05
"""Longest wait for messages that are on their way before connections are ended."""
_POLL_S = 0.001
_QUIET_POLLS = 3

SILENT_S = 20
"""A peer whose kernel has not answered for so long is gone. A virtual machine that is moved pauses for less."""
_GUARD = (
    (socket.TCP_KEEPIDLE, SILENT_S // 2),
    (socket.TCP_KEEPINTVL, SILENT_S // 4),
    (socket.TCP_KEEPCNT, 2),
    (socket.TCP_USER_TIMEOUT, 1000 * SILENT_S),
)

_MARK_MS = 860
"""A whole number of timer ticks at any frequency that Linux is built with (100, 250, 300 or 1000 Hz)."""
_TIMEVAL = struct.Struct("ll")
_SEQUENCE = struct.Struct("@n")
_SYN_SENT, _LISTEN = 2, 10


def marked(timeout_s: float) -> timedelta:
    """The time-out, by less than a second longer than `timeout_s`, by which gloo's sockets can be recognised."""
    seconds = int(timeout_s)
    return timedelta(seconds=seconds + (timeout_s - seconds > _MARK_MS / 1000), milliseconds=_MARK_MS)


class Wires:
    """Gloo's sockets of one view, those that it has and those that it will get.

    `mark`: the time-out of its groups, from `marked`. `size`: members of the view.
    """

    def __init__(self, mark: timedelta, size: int) -> None:
        self._mark = _TIMEVAL.pack(mark.days * 86400 + mark.seconds, mark.microseconds)
        self._size = size
        self._strange = {s.getsockname() for _, s in tcp_sockets() if _state(s) == _LISTEN}
        self._knocked: set[tuple[object, ...]] = set()

    def guard(self) -> None:
        """Let the kernel end connections of the view whose other side has fallen silent: a host that vanishes sends no
        word that would end them, and who cannot reach the coordinator either would wait for the group's time-out."""
        for _, s in tcp_sockets():
            if self._is_pair(s):
                s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _GUARD:
                    s.setsockopt(socket.IPPROTO_TCP, option, value)

    def settle(self) -> None:
        """Let messages that are on their way arrive, as long as any does, at most `QUIET_S`.

        Gloo never wakes who waits for a message of which a part has arrived, so it is better not to cut one in two.
        """
        pairs = [s.dup() for _, s in tcp_sockets() if self._is_pair(s)]
        try:
            before, quiet, deadline = None, 0, time.monotonic() + QUIET_S
            while pairs and quiet < _QUIET_POLLS and time.monotonic() < deadline:
                now = [_queued(s) for s in pairs]
                quiet = quiet + 1 if now == before else 0
                before = now
                time.sleep(_POLL_S)
        finally:
            for s in pairs:
                s.close()

    def shut(self) -> int:
        """End every connection of the view, once; returns how many. One that is made later needs another call."""
        count = 0
        for fd, s in tcp_sockets():
            if self._is_pair(s) or _is_dialling(fd, s):
                with suppress(OSError):  # the other side was faster
                    s.shutdown(socket.SHUT_RDWR)
                    count += 1
            elif _state(s) == _LISTEN:
                self._knock(s)
        return count

    def _is_pair(self, s: socket.socket) -> bool:
        options = (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)
        return all(s.getsockopt(socket.SOL_SOCKET, option, _TIMEVAL.size) == self._mark for option in options)

    def _knock(self, listening: socket.socket) -> None:
        """Be every peer that could be waited for at a listener that came with the view. Another's would hang up."""
        name = listening.getsockname()
        if name in self._strange or name in self._knocked:
            return
        self._knocked.add(name)
        for sequence in range(self._size):
            with suppress(OSError), socket.socket(listening.family) as visitor:
                visitor.settimeout(QUIET_S)
                visitor.connect(name)
                visitor.sendall(_SEQUENCE.pack(sequence))


def tcp_sockets() -> Iterator[tuple[int, socket.socket]]:
    """(descriptor, duplicate that is closed afterwards) of each TCP socket of this process."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            duplicate = os.dup(int(name))
        except OSError:  # closed meanwhile
            continue
        with socket.socket(fileno=duplicate) as s:
            if s.type == socket.SOCK_STREAM and s.family in (socket.AF_INET, socket.AF_INET6):
                yield int(name), s


def _state(s: socket.socket) -> int:
    return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _queued(s: socket.socket) -> tuple[bytes, bytes]:
    """What was received but not read, and sent but not received."""
    empty = bytes(4)
    return fcntl.ioctl(s, termios.FIONREAD, empty), fcntl.ioctl(s, termios.TIOCOUTQ, empty)


def _is_dialling(fd: int, s: socket.socket) -> bool:
    """Whether gloo is waiting for an answer to this connection."""
    if _state(s) != _SYN_SENT:
        return False
    with suppress(OSError):  # closed meanwhile
        return (
            not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            and bool(s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR))
            and bool(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        )
    return False
