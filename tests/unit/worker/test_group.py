"""Forming, cutting and dissolving a group in this process, with peers that are only played."""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from shoal.membership.messages import Fresh, ViewOrder
from shoal.membership.view import View
from shoal.worker.group import cut_group, dissolve_group, form_group, open_store
from shoal.worker.rendezvous import Meeting, Rendezvous
from shoal.worker.sockets import Wires, marked, tcp_sockets
from shoal.worker.stint import Stint

pytestmark = pytest.mark.unit

LIMIT_S = 600.0
"""Nobody is to be freed by the group's time-out."""
DEADLINE_S = 30.0
TOKEN = b"known to the members"
NATIVE = dist.Work.wait


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rendezvous]:
    """This process's rendezvous. Afterwards everything is as it was."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    hook = sys.excepthook
    yield open_store("127.0.0.1", TOKEN)[0]
    dissolve_group()
    dissolve_group()  # buries what the first has left
    until(lambda: not any(t.name in ("shoal-bury", "shoal-cut") for t in threading.enumerate()))
    assert not dist.is_initialized()
    assert sys.excepthook is hook
    assert dist.Work.wait is NATIVE


def order(store: Rendezvous, view: int, size: int, rank: int = 0, address: str | None = None) -> ViewOrder:
    members = tuple(f"w{i}" for i in range(size))
    return ViewOrder(View(view, members), members[rank], address or store.address, Fresh())


def form(order: ViewOrder, store: Rendezvous) -> None:
    form_group(order, torch.device("cpu"), store, LIMIT_S)


def freed(store: Rendezvous, wanted: ViewOrder, ready: Callable[[], bool]) -> str:
    """What forming `wanted` raises when the view is cut, which is done once `ready` says that forming has begun."""

    def cut() -> None:
        until(ready)
        cut_group(wanted.view.number)

    with ExitStack() as stack:
        thread = threading.Thread(target=cut)
        thread.start()
        stack.callback(thread.join)
        with pytest.raises(dist.DistError) as caught:
            form(wanted, store)
    return str(caught.value)


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def works(store: Rendezvous, view: int) -> None:
    assert dist.distributed_c10d._world.group_count == 0, "members that failed would name their groups differently"
    form(order(store, view, 1), store)
    x = torch.ones(3)
    dist.all_reduce(x)
    group = dist.new_group([0])
    dist.barrier(group)
    dissolve_group()
    assert not dist.is_initialized()


# In order ----------------------------------------------------------------------------------------------------------


def test_groups_come_and_go(store: Rendezvous) -> None:
    for view in range(5):
        works(store, view)
    dissolve_group()  # twice is harmless


def test_a_process_is_in_one_view_at_a_time(store: Rendezvous) -> None:
    form(order(store, 1, 1), store)
    with pytest.raises(AssertionError, match="still in view 1"):
        form(order(store, 2, 1), store)


# Cuts --------------------------------------------------------------------------------------------------------------


def test_a_cut_of_a_view_that_is_over_is_harmless(store: Rendezvous) -> None:
    works(store, 1)
    cut_group(1)
    works(store, 2)


def test_a_word_that_comes_after_a_run_has_let_go_does_not_hit_the_next_one(store: Rendezvous) -> None:
    """A warm process: the views of both runs begin with 1."""
    empty: Any = SimpleNamespace(snapshots={}, close=lambda: None)
    before = Stint(outfit=empty, job=empty, estate=empty, store=empty, facts=empty)
    before.cut(1)
    before.close()
    before.cut(1)
    works(store, 1)


def test_a_cut_of_another_view_is_harmless(store: Rendezvous) -> None:
    form(order(store, 2, 1), store)
    cut_group(1)
    cut_group(3)
    dist.all_reduce(torch.ones(1))
    dissolve_group()
    with pytest.raises(dist.DistError, match="view 3 was cut"):
        form(order(store, 3, 1), store)
    works(store, 4)


def test_everything_that_is_tried_after_a_cut_fails(store: Rendezvous) -> None:
    form(order(store, 1, 1), store)
    cut_group(1)
    cut_group(1)
    for _ in range(2):
        with pytest.raises(dist.DistError, match="view 1 was cut"):
            dist.all_reduce(torch.ones(1))
    dissolve_group()
    works(store, 2)


def test_a_cut_frees_who_waits_for_a_member_that_does_not_come(store: Rendezvous) -> None:
    assert "was cut" in freed(store, order(store, 1, 2), lambda: len(store) == 1)
    works(store, 2)


def test_a_cut_frees_who_waits_to_be_dialled(store: Rendezvous) -> None:
    """The peer has said where it listens, and is gone before it has dialled. No socket of that pair exists."""
    wanted = order(store, 1, 2)
    with socket.create_server(("127.0.0.2", 0)) as peer:  # the higher address dials
        play_peer(store, wanted, peer.getsockname())
        freed(store, wanted, lambda: len(store) == 2)
    works(store, 2)


def test_a_cut_frees_who_dials_in_vain(store: Rendezvous) -> None:
    """The peer's node does not answer at all."""
    wanted = order(store, 1, 2)
    with deaf_listener() as deaf:
        before = count(SYN_SENT)
        play_peer(store, wanted, deaf)
        freed(store, wanted, lambda: count(SYN_SENT) > before)
    works(store, 2)


def test_a_cut_frees_who_cannot_reach_the_rendezvous(store: Rendezvous) -> None:
    with deaf_listener() as deaf:
        before = count(SYN_SENT)
        wanted = order(store, 1, 2, rank=1, address=f"{deaf[0]}:{deaf[1]}")
        freed(store, wanted, lambda: count(SYN_SENT) > before)
    works(store, 2)


def test_a_host_that_is_gone_is_an_error_at_once(store: Rendezvous) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host = "{}:{}".format(*gone.getsockname())
    with pytest.raises(dist.DistError, match=f"nobody answers at {host}"):
        form(order(store, 1, 2, rank=1, address=host), store)
    works(store, 2)


def play_peer(store: Rendezvous, wanted: ViewOrder, endpoint: tuple[str, int]) -> None:
    """Say for the second member where it listens, as gloo says it."""
    address = struct.pack("=HH", socket.AF_INET, socket.htons(endpoint[1])) + socket.inet_aton(endpoint[0])
    address = address.ljust(128, b"\0") + struct.pack("q", -1)
    host = b"elsewhere"
    blob = struct.pack("q", len(host)) + host + struct.pack("q", len(address)) + address + struct.pack("2q", 0, 1)

    def say() -> None:
        peer = Meeting(store.address, wanted.view.number, timedelta(seconds=DEADLINE_S), TOKEN)
        peer.open()
        until(lambda: any(key.endswith("/0") for key in keys(store)))
        (key,) = keys(store)
        peer.set(key[:-1] + "1", blob)
        peer.close()

    threading.Thread(target=say).start()


def keys(store: Rendezvous) -> list[str]:
    return [key.decode() for values in store._views.values() for key in values]


@contextmanager
def deaf_listener() -> Iterator[tuple[str, int]]:
    """An endpoint that neither takes calls nor refuses them. Gloo dials it rather than being dialled: it compares ports
    with their bytes swapped, and the low byte of this one is 0."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        for port in range(256 * 60, 256 * 120, 256):
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                break
        listener.listen(0)
        for _ in range(3):  # fill its queue; whoever comes later is not heard
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield listener.getsockname()


SYN_SENT = 2


def count(state: int) -> int:
    """This process's TCP sockets in a state."""
    return sum(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == state for _, s in tcp_sockets())


# What is gloo's and what is not ------------------------------------------------------------------------------------


def test_other_connections_of_the_process_live_on(store: Rendezvous) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
        near.settimeout(LIMIT_S)  # in Python, not in the kernel
        for s in (near, far):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(LIMIT_S), 0))
        freed(store, order(store, 1, 2), lambda: len(store) == 1)
        near.sendall(b"well?")
        assert far.recv(5) == b"well?"
        socket.create_connection(server.getsockname()).close()
        near.close()
        far.close()


def test_every_listener_that_was_there_before_is_left_alone(store: Rendezvous) -> None:
    with socket.create_server(("127.0.0.1", 0)) as before:
        wires = Wires(marked(LIMIT_S), 3)
        with socket.create_server(("127.0.0.1", 0)) as after:
            assert wires.shut() == 0
            for server in (before, after):
                server.settimeout(0)
            with pytest.raises(BlockingIOError):
                before.accept()
            visitors = [after.accept()[0] for _ in range(3)]
            assert sorted(v.recv(8) for v in visitors) == [struct.pack("n", i) for i in range(3)]
            for v in visitors:
                v.close()


@given(st.floats(0.1, 1e5))
def test_a_marked_time_out_is_a_little_longer(seconds: float) -> None:
    mark = marked(seconds)
    assert seconds <= mark.total_seconds() < seconds + 1.001
    assert mark.microseconds == 860_000


# The rendezvous ----------------------------------------------------------------------------------------------------


@pytest.fixture
def meeting(store: Rendezvous) -> Iterator[Callable[[int], Meeting]]:
    with ExitStack() as stack:

        def come(view: int, patience_s: float = DEADLINE_S) -> Meeting:
            meeting = Meeting(store.address, view, timedelta(seconds=patience_s), TOKEN)
            meeting.open()
            stack.callback(meeting.close)
            return meeting

        yield come


def test_members_of_a_view_share_what_they_set(meeting: Callable[..., Meeting]) -> None:
    # As torch asks, through C++.
    a, b, stranger = (dist.PrefixStore("p", meeting(view)) for view in (1, 1, 2))
    a.set("x", b"\0\1")
    assert b.get("x") == b"\0\1"
    assert b.check(["x"])
    assert not b.check(["x", "y"])
    assert not stranger.check(["x"])
    assert [a.add("n", 2), b.add("n", 3)] == [2, 5]
    assert b.delete_key("x")
    assert not a.delete_key("x")
    b.set("x", "new")
    assert a.get("x") == b"new"
    assert a.get("n") == b"5"


def test_whoever_asks_too_early_waits(meeting: Callable[..., Meeting]) -> None:
    a, b = meeting(1), meeting(1)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(a.get("x")))
    thread.start()
    b.set("y", b"other")
    b.set("x", b"value")
    thread.join(DEADLINE_S)
    assert got == [b"value"]


def test_nobody_waits_longer_than_wanted(meeting: Callable[..., Meeting]) -> None:
    a = meeting(1)
    with pytest.raises(dist.DistStoreError, match="not all members came"):
        a.wait(["x"], timedelta(seconds=0.05))
    with pytest.raises(dist.DistError):
        a.get("x")


def test_old_views_are_forgotten(store: Rendezvous, meeting: Callable[..., Meeting]) -> None:
    for view in range(1, 4):
        meeting(view).set("x", b"1")
    store.begin(3)
    assert len(store) == 1


def test_noise_does_not_disturb_the_rendezvous(store: Rendezvous, meeting: Callable[..., Meeting]) -> None:
    a = meeting(1)
    host, port = store.address.split(":")
    said = [b"".join(struct.pack("!I", len(part)) + part for part in parts) for parts in ((b"set", b"1"), (b"x", b"y"))]
    wrong = [struct.pack("!II", 2, len(body)) + body for body in said]
    for noise in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(4096), struct.pack("!II", 3, 4) + b"abcd", *wrong):
        with socket.create_connection((host, int(port))) as s:
            s.sendall(noise)
    a.set("x", b"1")
    assert a.get("x") == b"1"
