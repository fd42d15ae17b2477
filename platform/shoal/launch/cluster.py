"""Connecting to Ray: a running cluster if there is one to join, a local one otherwise."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from shoal.errors import CapacityError
from shoal.job import Job
from shoal.ray_compat import LOCAL_SETTINGS, job_modules, quiet_driver

MB = 1 << 20
STORE_MB = 2048
CONNECT_S = 3.0
"""A head node that takes no connection for so long does not exist."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What this process is connected to."""

    address: str
    local: bool
    """True: the cluster was started here and ends with this process."""
    node_id: str


@dataclass(frozen=True, slots=True)
class Local:
    """What a cluster that is started here has; all of it logical."""

    cpus: float
    resources: tuple[tuple[str, float], ...]
    ahead_mb: int
    """Blocks of data that may wait in its object store."""

    @classmethod
    def of(cls, job: Job) -> Local:
        """As much as the run could ever be scaled to, while it goes."""
        most = job.batch.virtual_shards
        resources = tuple((name, amount * most) for name, amount in job.workers.resources)
        return cls(most * job.workers.cpus + job.data.cpus, resources, job.data.ahead_mb)


@contextmanager
def connect(local: Local, address: str | None) -> Iterator[Connection]:
    """Join the cluster at `address` (default: RAY_ADDRESS, or the surrounding Ray job's), else start a local one.

    A connection that the caller had made already is used and left as it is.
    Raises CapacityError if the address does not answer.
    """
    import ray

    if ray.is_initialized():
        yield _connection(local=False)
        return
    wanted = address or os.environ.get("RAY_ADDRESS")
    if wanted and wanted != "local":
        _join(wanted)
    else:
        _start_local(local)
    quiet_driver()
    try:
        yield _connection(local=not wanted or wanted == "local")
    finally:
        ray.shutdown()


def starts_local(address: str | None) -> bool:
    """Whether `connect` would start a cluster that ends with this process."""
    import ray

    wanted = address or os.environ.get("RAY_ADDRESS")
    return not ray.is_initialized() and (not wanted or wanted == "local")


def reach(address: str) -> None:
    """Raise OSError if `host:port` takes no connection: Ray itself would try for a minute."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=_joining())
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CapacityError(
            f"no Ray cluster answers at {address} ({error}); check the address, or leave out --address (and unset "
            f"RAY_ADDRESS) to start a local one"
        ) from None


def _start_local(local: Local) -> None:
    """A Ray cluster on this machine."""
    import ray

    for name, value in LOCAL_SETTINGS.items():
        os.environ.setdefault(name, value)
    # Blocks that wait, and snapshots on their way from one worker to another.
    store = min(int(0.2 * psutil.virtual_memory().total), max(STORE_MB, 6 * local.ahead_mb) * MB)
    try:
        ray.init(
            address="local",  # not one that somebody else has started here, which nobody has named
            num_cpus=max(1, int(-(-local.cpus // 1))),
            resources=dict(local.resources) or None,
            object_store_memory=store,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    # Ray has no type of its own for processes that do not come up in time.
    except Exception as error:  # noqa: BLE001
        raise CapacityError(
            f"no Ray cluster could be started on this machine ({error}); where it is overloaded, try again when it has "
            f"less to do"
        ) from None


def shipping() -> dict[str, Any]:
    """The runtime environment by which Shoal's own code reaches the nodes of a cluster that we joined.

    The one place that knows. What Shoal needs (torch, DeepSpeed, ...) must be installed there.
    """
    return {"py_modules": [str(Path(__file__).resolve().parents[1])]}


def _joining() -> dict[str, Any]:
    """The runtime environment of a process that joins a cluster, in a Ray job that may have one of its own."""
    if "py_modules_files" in Path(__file__).parts:
        return {}  # the job has brought this very code, and brings it to all nodes
    if not (others := job_modules()):
        return shipping()
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"  # Ray refuses two lists of modules unless it is told that
    return {"py_modules": [*others, *shipping()["py_modules"]]}


def _connection(*, local: bool) -> Connection:
    import ray

    context = ray.get_runtime_context()
    return Connection(address=context.gcs_address, local=local, node_id=context.get_node_id())
