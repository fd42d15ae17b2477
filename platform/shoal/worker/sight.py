"""Whether this process reaches other workers: their rendezvous greets whoever comes."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress

LOOK_S = 2.0
"""For a connection and the first byte, of all at once: some lost packets sent again, or a slow network."""


def out_of_sight(where: Mapping[str, str], *, within_s: float = LOOK_S) -> tuple[str, ...]:
    """The names of those in `where` (name -> `host:port`) that do not greet within `within_s` seconds.

    The kernel of a stopped process takes connections, so only its word counts.
    """
    missing, deadline = dict(where), time.monotonic() + within_s
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for name, address in where.items():
            host, _, port = address.rpartition(":")
            line = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            line.setblocking(False)
            line.connect_ex((host, int(port)))
            selector.register(line, selectors.EVENT_READ, name)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                with suppress(OSError):  # refused, or no way there
                    if isinstance(key.fileobj, socket.socket) and key.fileobj.recv(1):
                        del missing[key.data]
    return tuple(missing)
