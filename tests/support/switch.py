"""The network between the hosts of `tests.support.hosts`: a switch that can cut, delay and lose what goes through it.

    python -m tests.support.switch HOST ADDRESS [HOST ADDRESS ...]

Each host is a network namespace with an interface whose other end is here, so every packet between two hosts comes
through this process. It reads orders from its standard input, a line of JSON each, and answers each with a line:
`{"cut": [[a, b], ...], "delay_s": seconds, "loss": share}`, all three each time; hosts go by their place in the list,
`cut` pairs hear nothing of each other. It ends with its input. (The kernel's own `netem` is not everywhere.)
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import ipaddress
import json
import os
import random
import selectors
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path

INTERFACE = "lan0"
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MTU = 9000
_AT_ONCE = 64
"""Packets of one host before the next host's turn."""


class Switch:
    """Forwards packets between `ends`, (descriptor, IPv4 address in four bytes) of each host."""

    def __init__(self, ends: list[tuple[int, bytes]]) -> None:
        self._ends = [fd for fd, _ in ends]
        self._place = {address: i for i, (_, address) in enumerate(ends)}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._cut: set[tuple[int, int]] = set()
        self._delay_s = self._loss = 0.0
        self._dice = random.Random(20)

    def obey(self, order: dict[str, object]) -> None:
        """Do as `order` says from now on; what is on its way already arrives."""
        pairs = [tuple(pair) for pair in order["cut"]]  # type: ignore[attr-defined]
        self._cut = {*pairs, *((b, a) for a, b in pairs)}
        self._delay_s, self._loss = float(order["delay_s"]), float(order["loss"])  # type: ignore[arg-type]

    def take(self, source: int) -> None:
        """Forward what host `source` has sent."""
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(self._ends[source], 65536)
            except BlockingIOError:
                return
            target = self._place.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if target is None or (source, target) in self._cut or self._dice.random() < self._loss:
                continue
            if self._delay_s:
                self._count += 1
                heapq.heappush(self._late, (time.monotonic() + self._delay_s, self._count, target, packet))
            else:
                self._give(target, packet)

    def give_late(self) -> float | None:
        """Deliver what has been delayed long enough; returns seconds until the next is due."""
        while self._late and self._late[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(self._late)
            self._give(target, packet)
        return max(0.0, self._late[0][0] - time.monotonic()) if self._late else None

    def _give(self, target: int, packet: bytes) -> None:
        with suppress(OSError):  # an interface that is down, a queue that is full: a network loses such packets
            os.write(self._ends[target], packet)


def interface(namespace: str, address: str) -> int:
    """Make the interface of a host in its namespace; returns its other end."""
    with Path("/proc/self/ns/net").open() as home, Path(f"/run/netns/{namespace}").open() as there:
        _enter(there.fileno())
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI))
            for command in (
                f"ip address add {address}/24 dev {INTERFACE}",
                f"ip link set dev {INTERFACE} mtu {_MTU} txqueuelen 5000 up",
                f"ip route add default dev {INTERFACE}",
                "ip link set dev lo up",
            ):
                if os.spawnvp(os.P_WAIT, "ip", command.split()):
                    raise SystemExit(f"{command} failed in {namespace}")
        finally:
            _enter(home.fileno())
    return fd


def _enter(namespace: int) -> None:
    if _LIBC.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def main(hosts: list[str]) -> None:
    """Run until the input ends."""
    ends = [(interface(name, at), ipaddress.ip_address(at).packed) for name, at in zip(*[iter(hosts)] * 2, strict=True)]
    switch, selector = Switch(ends), selectors.DefaultSelector()
    for place, (fd, _) in enumerate(ends):
        selector.register(fd, selectors.EVENT_READ, place)
    selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
    orders = b""
    print("ready", flush=True)
    while True:
        for key, _ in selector.select(switch.give_late()):
            if key.data is not None:
                switch.take(key.data)
                continue
            heard = os.read(key.fd, 65536)
            if not heard:
                return
            *lines, orders = (orders + heard).split(b"\n")
            for line in lines:
                switch.obey(json.loads(line))
                print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
