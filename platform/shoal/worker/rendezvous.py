"""Where the members of a view find each other: a small store of keys and values on each worker, for one run.

Torch's own (`TCPStore`) cannot be used here. It looks up the name of whoever connects, and of whom it connects to, and
where the name service is slow or loses a packet a view would take five seconds to form instead of a few milliseconds.
Its waits cannot be interrupted, and its keys pile up, and it takes orders from everybody.

A message is a list of byte strings: a count, then each with its length, all as 32-bit numbers. Each side first proves
that it knows the run's token (`credentials`): the store says [nonce], the caller [nonce, proof], the store [ok, proof].
Who cannot is hung up on. Then a request is [operation, view, ...], an answer [ok or error, ...].
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

from shoal.worker.credentials import NONCE, holds, nonce, proof

_NUMBER = struct.Struct("!I")
_COUNT = struct.Struct("!q")
_LARGEST = 1 << 24
"""Bytes of a message. An address of gloo has about 200."""
_OK, _ERROR = b"ok", b"error"
_LARGEST_GREETING = 256
STRANGER_S = 5.0
"""For a caller to prove that it belongs to the run."""
STRANGERS = 64
"""Callers that have not; of more, the first are hung up on."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds and attempts after which the connection of a host that vanished ends."""
_LOOK_S = 0.02
"""Between two looks at whether a connection that is being made is still wanted."""


def _pack(parts: Sequence[bytes]) -> bytes:
    body = b"".join(_NUMBER.pack(len(part)) + part for part in parts)
    return _NUMBER.pack(len(parts)) + _NUMBER.pack(len(body)) + body


def _unpack(data: bytearray, largest: int = _LARGEST) -> list[bytes] | None:
    """Take one message off the front; None: it is not all there yet. Raises ValueError for what is none."""
    if len(data) < 8:
        return None
    (count,), (length,) = _NUMBER.unpack_from(data, 0), _NUMBER.unpack_from(data, 4)
    if length > largest or 4 * count > length:
        raise ValueError("not a message")
    if len(data) < 8 + length:
        return None
    parts, at = [], 8
    for _ in range(count):
        (size,) = _NUMBER.unpack_from(data, at)
        parts.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != 8 + length:
        raise ValueError("not a message")
    del data[:at]
    return parts


@dataclass(eq=False, slots=True)
class _Caller:
    """A connection of one member, or of somebody who has yet to prove that it is one."""

    line: socket.socket
    nonce: bytes
    since: float
    known: bool = False
    heard: bytearray = field(default_factory=bytearray)
    wants: tuple[int, list[bytes]] | None = None
    """(view, keys) that it waits for."""


class Rendezvous:
    """The store of this process, served by a thread of its own, for those who know `token`. `address`: its `host:port`.

    The values of a view are forgotten when the host begins a later one.
    """

    def __init__(self, host: str, token: bytes) -> None:
        self._token = token
        self._listening = socket.create_server((host, 0), family=_family(host), backlog=512)
        self._listening.setblocking(False)
        self.address = f"{host}:{self._listening.getsockname()[1]}"
        self._lock = threading.Lock()
        self._views: dict[int, dict[bytes, bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._callers: set[_Caller] = set()
        self._closing, bell = socket.socketpair()
        self._selector.register(bell, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, args=(bell,), name="shoal-rendezvous", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody, and be gone."""
        self._closing.close()
        self._thread.join()

    def begin(self, view: int) -> None:
        """Forget all earlier views."""
        with self._lock:
            for number in [number for number in self._views if number < view]:
                del self._views[number]

    def __len__(self) -> int:
        """Keys that are stored."""
        with self._lock:
            return sum(len(values) for values in self._views.values())

    def _serve(self, bell: socket.socket) -> None:
        while True:
            strangers = [c for c in self._callers if not c.known]
            for key, _ in self._selector.select(STRANGER_S if strangers else None):
                if key.fileobj is bell:
                    self._end(bell)
                    return
                if key.data is None:
                    self._accept()
                else:
                    self._hear(key.data)
            self._mind_strangers()

    def _mind_strangers(self) -> None:
        """Hang up on callers that take too long to prove who they are, or are too many."""
        strangers = sorted((c for c in self._callers if not c.known), key=lambda c: c.since)
        now = time.monotonic()
        for i, caller in enumerate(strangers):
            if now - caller.since > STRANGER_S or i < len(strangers) - STRANGERS:
                self._hang_up(caller)

    def _end(self, bell: socket.socket) -> None:
        for caller in list(self._callers):
            self._hang_up(caller)
        for own in (self._listening, bell, self._selector):
            own.close()

    def _accept(self) -> None:
        try:
            line, _ = self._listening.accept()
        except OSError:  # the caller is gone already
            return
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            line.setsockopt(socket.IPPROTO_TCP, option, value)
        line.setblocking(False)
        caller = _Caller(line, nonce(), time.monotonic())
        self._callers.add(caller)
        self._selector.register(line, selectors.EVENT_READ, caller)
        self._say(caller, [caller.nonce])

    def _hear(self, caller: _Caller) -> None:
        try:
            data = caller.line.recv(65536)
            caller.heard += data
            if not caller.known and (greeting := _unpack(caller.heard, _LARGEST_GREETING)) is not None:
                self._greet(caller, greeting)
            while caller.known and (request := _unpack(caller.heard)) is not None:
                self._answer(caller, request)
        except (OSError, ValueError, struct.error, IndexError):  # lost, or somebody who does not speak this language
            data = b""
        if not data:
            self._hang_up(caller)

    def _greet(self, caller: _Caller, greeting: list[bytes]) -> None:
        theirs, said = greeting
        if len(theirs) != NONCE or not holds(self._token, said, "caller", caller.nonce, theirs):
            raise ValueError("it does not know the token")
        caller.known = True
        self._say(caller, [_OK, proof(self._token, "store", theirs, caller.nonce)])

    def _answer(self, caller: _Caller, request: list[bytes]) -> None:
        operation, number, *rest = request
        view = int(number)
        with self._lock:
            values = self._views.setdefault(view, {})
            if operation == b"set":
                values[rest[0]] = rest[1]
                answer = [_OK]
            elif operation == b"add":
                total = _COUNT.unpack(rest[1])[0] + int(values.get(rest[0], b"0"))
                values[rest[0]] = str(total).encode()
                answer = [_OK, _COUNT.pack(total)]
            elif operation == b"check":
                answer = [_OK, b"1" if all(key in values for key in rest) else b"0"]
            elif operation == b"delete":
                answer = [_OK, b"0" if values.pop(rest[0], None) is None else b"1"]
            elif operation == b"get":
                caller.wants, answer = (view, rest), []
            else:
                answer = [_ERROR, b"unknown operation"]
        if answer:
            self._say(caller, answer)
        self._satisfy()

    def _satisfy(self) -> None:
        """Answer everybody who waits for keys that are there now."""
        for caller in [c for c in self._callers if c.wants is not None]:
            assert caller.wants is not None
            view, keys = caller.wants
            with self._lock:
                values = self._views.get(view, {})
                found = [values[key] for key in keys if key in values]
            if len(found) == len(keys):
                caller.wants = None
                self._say(caller, [_OK, *found])

    def _say(self, caller: _Caller, parts: list[bytes]) -> None:
        try:
            # Answers are far smaller than the buffer of a socket; who does not read them is cut off.
            if caller.line.send(message := _pack(parts)) < len(message):
                self._hang_up(caller)
        except OSError:
            self._hang_up(caller)

    def _hang_up(self, caller: _Caller) -> None:
        if caller in self._callers:
            self._callers.remove(caller)
            self._selector.unregister(caller.line)
            caller.line.close()


class Meeting(dist.Store):
    """A member's connection to the store of view `view`, at `address`, as torch.distributed wants it.

    `patience`: for the store to be reached, and for every wait without a time of its own. `token`: the run's.
    """

    def __init__(self, address: str, view: int, patience: timedelta, token: bytes) -> None:
        super().__init__()
        self._address, self._view, self._patience, self._token = address, view, patience, token
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._over = threading.Event()
        self._seen: dict[str, bytes] = {}

    def open(self) -> None:
        """Connect. Raises DistNetworkError if nobody is there who knows the token, or if `end` is called meanwhile."""
        host, _, port = self._address.rpartition(":")
        line = socket.socket(_family(host), socket.SOCK_STREAM)
        line.setblocking(False)
        line.connect_ex((host, int(port)))
        deadline, calling = time.monotonic() + self._patience.total_seconds(), select.poll()
        calling.register(line, select.POLLOUT)
        while not (calling.poll(1e3 * _LOOK_S) or self._over.is_set() or time.monotonic() > deadline):
            pass
        error = line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            line.getpeername()
        except OSError:
            line.close()
            raise dist.DistNetworkError(
                f"nobody answers at {self._address}, where view {self._view} meets: {os.strerror(error)}"
            ) from None
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line = line
        if self._over.is_set():
            self.end()
        self._greet(line, deadline)

    def _greet(self, line: socket.socket, deadline: float) -> None:
        """Prove to the store that this process is of the run, and see that the store is."""
        where, mine = f"{self._address}, where view {self._view} meets", nonce()
        try:
            (theirs,) = self._listen(line, deadline)
            line.sendall(_pack([mine, proof(self._token, "caller", theirs, mine)]))
            answer = self._listen(line, deadline)
        except TimeoutError:
            raise dist.DistNetworkError(f"{where}, does not speak") from None
        except (OSError, ValueError) as error:
            why = str(error) if self._over.is_set() else f"it hung up: is it of this launch of the run? ({error})"
            raise dist.DistNetworkError(f"{where}: {why}") from None
        if len(answer) != 2 or not holds(self._token, answer[1], "store", mine, theirs):
            raise dist.DistNetworkError(f"{where}, does not know the token of this run; see docs/security.md")

    def end(self) -> None:
        """Make everything that waits here fail, from any thread, and all that is asked later."""
        self._over.set()
        line = self._line
        if line is not None:
            with suppress(OSError):  # it has ended already
                line.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection."""
        self.end()
        with self._lock:
            if self._line is not None:
                self._line.close()
                self._line = None

    def set(self, key: str, value: str | bytes) -> None:
        self._ask(b"set", key.encode(), value.encode() if isinstance(value, str) else bytes(value))
        self._seen.pop(key, None)

    def get(self, key: str) -> bytes:
        """Waits until there is a value."""
        if key not in self._seen:
            self.wait([key])
        return self._seen[key]

    def wait(self, keys: Iterable[str], timeout: timedelta | None = None) -> None:
        names = list(keys)
        # The values come along, because whoever waits for them reads them next.
        values = self._ask(b"get", *(name.encode() for name in names), within=timeout)
        self._seen = dict(zip(names, values, strict=True))

    def add(self, key: str, amount: int) -> int:
        return _COUNT.unpack(self._ask(b"add", key.encode(), _COUNT.pack(amount))[0])[0]

    def check(self, keys: Iterable[str]) -> bool:
        return self._ask(b"check", *(key.encode() for key in keys))[0] == b"1"

    def deleteKey(self, key: str) -> bool:  # by this name torch calls it from C++
        self._seen.pop(key, None)
        return self._ask(b"delete", key.encode())[0] == b"1"

    def _ask(self, operation: bytes, *rest: bytes, within: timedelta | None = None) -> list[bytes]:
        """One question, one answer. Raises DistNetworkError if the store is gone, DistStoreError if it takes long."""
        deadline = time.monotonic() + (within or self._patience).total_seconds()
        with self._lock:
            try:
                if self._line is None:
                    raise ConnectionError("not connected")
                self._line.settimeout(max(_LOOK_S, deadline - time.monotonic()))
                self._line.sendall(_pack([operation, str(self._view).encode(), *rest]))
                answer = self._listen(self._line, deadline)
            except TimeoutError:
                self.end()  # an answer that comes later must not be taken for that to another question
                raise dist.DistStoreError(
                    f"view {self._view}: not all members came to {self._address} in time"
                ) from None
            except (OSError, ValueError) as error:
                raise dist.DistNetworkError(f"view {self._view}: {self._address} cannot be asked: {error}") from None
        if answer[0] != _OK:
            raise dist.DistStoreError(f"view {self._view}: {answer[-1].decode()}")
        return answer[1:]

    def _listen(self, line: socket.socket, deadline: float) -> list[bytes]:
        heard = bytearray()
        while (answer := _unpack(heard)) is None:
            line.settimeout(max(_LOOK_S, deadline - time.monotonic()))
            data = line.recv(65536)
            if not data:
                raise ConnectionError("the view was cut" if self._over.is_set() else "it hung up")
            heard += data
        return answer


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
