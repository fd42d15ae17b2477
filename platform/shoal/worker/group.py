"""The process group of a view: formed, cut and dissolved in place, in milliseconds, any number of times.

A worker has one rendezvous store for each run. A view meets at the store of its first member, under its own prefix.
While the main thread forms a group or works in it, another thread may cut it (`cut_group`): whatever the main thread
waits for then fails, be it a peer that died, one that was stopped, or one that never came.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist

from shoal.membership.messages import ViewOrder
from shoal.worker.credentials import prove_to_peers
from shoal.worker.rendezvous import Meeting, Rendezvous
from shoal.worker.sockets import Wires, marked
from shoal.worker.waits import Waits

SEVER_S = 1.0
"""For the first stroke at the connections of a view that is cut; it takes a few milliseconds."""
ABORT_S = 10.0
"""For NCCL to let go of an aborted communicator."""


class _Bond:
    """What ties this process to one view."""

    def __init__(self, order: ViewOrder, limit: timedelta, token: bytes, *, on_device: bool) -> None:
        self.number, self.on_device = order.view.number, on_device
        self.waits = Waits(self.cut, on_device=on_device)
        self.meeting = Meeting(order.address, self.number, limit, token)
        self._token, self._proven = token, 0
        self._wires = Wires(limit, order.view.size)
        self._cut, self._severed, self._left = threading.Event(), threading.Event(), threading.Event()
        self._first, self._at_work = threading.Lock(), threading.Lock()

    @property
    def is_cut(self) -> bool:
        return self._cut.is_set()

    def cut(self) -> None:
        """Make everything that waits for a member fail, until this process has left the view. Returns at once."""
        if not self._first.acquire(blocking=False):
            return
        self._cut.set()
        self.meeting.end()
        self.waits.cut(f"view {self.number} was cut")
        threading.Thread(target=self._sever, name="shoal-cut", daemon=True).start()
        if self.on_device:
            threading.Thread(target=_abort_nccl, name="shoal-abort", daemon=True).start()

    def prove(self) -> None:
        """See that all pairs of groups that are new lead to processes of this run; from now on a silent one ends."""
        groups = list(dist.distributed_c10d._world.pg_map)
        self._wires.guard()
        for number, group in enumerate(groups[self._proven :], self._proven):
            if group.size() > 1 and "gloo" in dist.distributed_c10d._world.pg_map[group][0]:
                prove_to_peers(group, self._token, self.number, number)
        self._proven = len(groups)

    def leave(self) -> None:
        """From now on this view's sockets are nobody's; what is cut has been severed."""
        if self.is_cut:
            self._severed.wait(SEVER_S)
        with self._at_work:  # or a late stroke would hit the next view's
            self._left.set()
        self.waits.close()
        self.meeting.close()

    def _sever(self) -> None:
        self._wires.settle()
        pause = 0.002
        while not self._left.wait(pause if self._severed.is_set() else 0):
            with self._at_work:
                if not self._left.is_set():
                    self._wires.shut()
            self._severed.set()
            pause = min(2 * pause, 0.1)  # what the main thread does next may open new sockets


class _Place:
    """Where this process stands; one at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.bond: _Bond | None = None
        self.token = b""
        """Of the run that this process serves."""
        self.cut_ahead: set[int] = set()
        """Views that were cut before this process began to form them."""
        self.graves: list[Any] = []
        """Groups that torch has forgotten but that are still there."""


_place = _Place()


def open_store(host: str, token: bytes) -> tuple[Rendezvous, str]:
    """Start the rendezvous of this process for one run; returns it and its `host:port`.

    `host`: the address by which the others reach this node; nothing listens on another, and gloo is bound to the same
    interface. `token`: what the processes of this launch of the run know, and nobody else.
    """
    bind_gloo_to(host)
    store = Rendezvous(host, token)
    _place.token = token
    return store, store.address


def prove_groups() -> None:
    """What was made since the view was formed, groups of an engine's own, leads to members of the view as well
    (collective). Raises DistError if something in the network has taken a member's place."""
    bond = _place.bond
    assert bond is not None, "this process is in no view"
    bond.prove()


def form_group(order: ViewOrder, device: torch.device, store: Rendezvous | None, timeout_s: float) -> None:
    """Form the default group of the view (collective).

    `store` is given on the member that hosts the rendezvous. `timeout_s` bounds the forming and every collective inside
    the group, less than a second is added to it; DeepSpeed makes sub-groups without a time-out of their own, so torch's
    default is set to the same. Raises DistError if a member does not come, or the view is cut.
    """
    limit = marked(timeout_s)
    bond = _Bond(order, limit, _place.token, on_device=device.type == "cuda")
    with _place.lock:
        assert _place.bond is None, f"this process is still in view {_place.bond.number}"
        if bond.number in _place.cut_ahead:
            raise dist.DistBackendError(f"view {bond.number} was cut before it was formed")
        _place.cut_ahead = {n for n in _place.cut_ahead if n > bond.number}
        _place.bond = bond
    _bury()
    hook = sys.excepthook
    try:
        if store is not None:
            store.begin(bond.number)
        _connect(order, device, limit, bond)
    except BaseException as error:
        was_cut = bond.is_cut
        dissolve_group()
        if was_cut:
            raise dist.DistBackendError(f"view {bond.number} was cut while it was formed") from error
        if isinstance(error, RuntimeError):
            raise dist.DistBackendError(f"view {bond.number} could not be formed: {error}") from error
        raise
    finally:
        sys.excepthook = hook  # torch puts another one around it for every group


def _connect(order: ViewOrder, device: torch.device, limit: timedelta, bond: _Bond) -> None:
    view = order.view
    if view.size > 1:
        bond.meeting.open()
    dist.distributed_c10d.default_pg_timeout = limit
    if device.type == "cuda":
        dist.distributed_c10d.default_pg_nccl_timeout = limit
        # A collective that fails or hangs must end the view, not the process: neither of torch's watchmen may kill it.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
    bond.waits.install()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=bond.meeting if view.size > 1 else dist.HashStore(),
        rank=view.rank(order.member),
        world_size=view.size,
        timeout=limit,
        device_id=device if device.type == "cuda" else None,
    )
    bond.prove()
    if bond.is_cut:
        raise dist.DistBackendError("it was cut")


def cut_group(view: int) -> None:
    """End view `view` for this process, from any thread: what waits for a member, in forming, in a collective, in a
    backward pass or in a transfer, raises within milliseconds, and so does all that is tried in this group later.

    Returns at once. A view that this process has left already is not touched; one that it has not begun to form will
    fail at its forming. Peers notice that the connections end, so one cut wakes all.
    """
    with _place.lock:
        bond = _place.bond
        if bond is None or bond.number != view:
            _place.cut_ahead.add(view)
            return
    bond.cut()


def dissolve_group() -> None:
    """Leave the view: torch.distributed forgets every group, whole or broken. Never waits for a peer.

    Engines must have let go of the groups (`leave`); what they still hold stays in memory as long as they hold it.
    """
    with _place.lock:
        bond, _place.bond = _place.bond, None
    _bury()
    if bond is not None:
        if bond.is_cut or sys.exc_info()[0] is not None:
            bond.cut()
        bond.leave()
    _forget(bond)


def forget_views() -> None:
    """Between two runs: what was cut ahead, and groups that are still there, belong to views of the run before. The
    process is in no view."""
    with _place.lock:
        assert _place.bond is None, f"this process is still in view {_place.bond.number}"
        _place.cut_ahead.clear()
    _bury()


def _forget(bond: _Bond | None) -> None:
    world = dist.distributed_c10d._world
    if dist.is_initialized():
        # The end of a group waits for its threads. It comes when the last reference goes: later, in another thread.
        _place.graves = [*world.pg_map, bond and bond.meeting]
        if bond is None or not bond.on_device:
            dist.destroy_process_group()
        elif not bond.is_cut:
            dist.destroy_process_group()  # NCCL's is collective: all members come here
        elif not _within(ABORT_S, dist.distributed_c10d._abort_process_group):
            raise dist.DistBackendError(f"NCCL did not let go of view {bond.number} within {ABORT_S:g} s")
    world.group_count = 0  # a forming that failed has counted too, and names must be the same on all members


def _abort_nccl() -> None:
    """Make NCCL's kernels and calls return. A communicator that is only being made cannot be aborted."""
    for group in list(dist.distributed_c10d._world.pg_map):
        group.abort()


def _within(seconds: float, act: Callable[[], None]) -> bool:
    """Whether `act` came to its end in time."""
    thread = threading.Thread(target=act, name="shoal-abort", daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def _bury() -> None:
    """Drop what is left of the groups before, in a thread that may have to wait for theirs."""
    graves, _place.graves = _place.graves, []
    if graves:
        # Not a daemon: the interpreter must not end in the middle of a destructor.
        threading.Thread(target=graves.clear, name="shoal-bury").start()


def bind_gloo_to(address: str) -> None:
    """Make gloo listen on the interface that carries `address`, the one by which Ray knows this node.

    Without this gloo asks the resolver for the host's name, and on many machines that answers 127.0.1.1.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return
