"""Whether this process reaches other workers over the network."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack

LOOK_S = 4.0
"""For all connections at once. A first packet that is lost is sent again after one second and after three."""


def out_of_sight(where: Mapping[str, str], *, within_s: float = LOOK_S) -> tuple[str, ...]:
    """The names of those in `where` (name -> `host:port` of its rendezvous) with whom no connection comes about.

    It is the kernel there that answers, so a process that is busy, or on a machine that is, is seen all the same.
    """
    missing, deadline = dict(where), time.monotonic() + within_s
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for name, address in where.items():
            host, _, port = address.rpartition(":")
            line = stack.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
            line.setblocking(False)
            line.connect_ex((host, int(port)))
            selector.register(line, selectors.EVENT_WRITE, (name, line))
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                name, line = key.data
                selector.unregister(line)
                if not line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    del missing[name]
    return tuple(missing)
