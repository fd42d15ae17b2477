"""Process groups of a view: one rendezvous store on rank 0, one default group, taken down and formed again in place."""

from __future__ import annotations

import os
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from shoal.membership.messages import ViewOrder


def open_store(host: str, size: int, timeout_s: float) -> tuple[dist.TCPStore, str]:
    """Start the rendezvous store of a view on this process; returns it and its `host:port`."""
    store = dist.TCPStore(host, 0, size, is_master=True, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
    return store, f"{host}:{store.port}"


def form_group(order: ViewOrder, device: torch.device, store: dist.TCPStore | None, timeout_s: float) -> None:
    """Form the default group of the view (collective).

    `store` is given on the member that hosts it. `timeout_s` bounds the forming and every collective inside the group;
    DeepSpeed makes sub-groups without a time-out of their own, so torch's default is set to the same.
    """
    host, port = order.address.rsplit(":", 1)
    limit = timedelta(seconds=timeout_s)
    bind_gloo_to(host if store is not None else None)
    base = store or dist.TCPStore(host, int(port), order.view.size, is_master=False, timeout=limit)
    dist.distributed_c10d.default_pg_timeout = limit
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"view-{order.view.number}", base),
        rank=order.view.rank(order.member),
        world_size=order.view.size,
        timeout=limit,
        device_id=device if device.type == "cuda" else None,
    )


def dissolve_group() -> None:
    """Take the default group down if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def bind_gloo_to(address: str | None) -> None:
    """Make gloo listen on the interface that carries `address`, the one by which Ray knows this node.

    Without this gloo asks the resolver for the host's name, and on many machines that answers 127.0.1.1.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or address is None:
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == address for a in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return
