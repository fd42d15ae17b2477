"""Persistent worker processes for tests of collective code: groups are formed and dissolved, processes stay.

Starting a process and importing torch takes seconds; forming a gloo group takes milliseconds. So a test session starts
the processes once and every case forms the group it needs. Functions and arguments travel by pickle, functions
therefore by name: they must live at the top of an importable module.
"""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

COLLECTIVE_S = 60.0
"""Deadline of every collective inside a group."""


class RemoteFailure(AssertionError):
    """A function failed in one of the processes; the message is its traceback there."""


class ProcessPool:
    """`size` processes, each with a dictionary that lives as long as the process."""

    def __init__(self, size: int, *, device_type: str = "cpu") -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._processes = []
        self._store: Any = None
        for place in range(size):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, place, device_type), daemon=True)
            process.start()
            there.close()
            self._ends.append(here)
            self._processes.append(process)

    @property
    def size(self) -> int:
        return len(self._ends)

    def run(
        self, function: Callable[..., Any], *args: Any, members: Sequence[int], timeout_s: float = 120.0, **kwargs: Any
    ) -> list[Any]:
        """`function(kept, rank, size, *args, **kwargs)` on each of `members`, rank being the place in that list.

        A default process group of exactly these members is up while it runs. Returns the results in rank order.
        Raises RemoteFailure if any of them failed, and TimeoutError if one did not answer.
        """
        port = self._rendezvous()
        for rank, member in enumerate(members):
            task = (function, rank, len(members), port, args, kwargs)
            self._ends[member].send_bytes(pickle.dumps(task))
        answers = self._gather(members, time.monotonic() + timeout_s)
        failures = [f"process {m} (rank {r}):\n{answers[m][1]}" for r, m in enumerate(members) if not answers[m][0]]
        if failures:
            raise RemoteFailure("\n".join(failures))
        return [answers[m][1] for m in members]

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()

    def _rendezvous(self) -> int:
        """The port of a fresh store, hosted here: nobody has to guess a free port."""
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return self._store.port

    def _gather(self, members: Sequence[int], deadline: float) -> dict[int, tuple[bool, Any]]:
        answers: dict[int, tuple[bool, Any]] = {}
        waiting = {self._ends[m]: m for m in members}
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"processes {sorted(waiting.values())} did not answer in time; answers: {answers}")
            for end in ready:
                member = waiting.pop(end)  # type: ignore[call-overload]
                try:
                    answers[member] = pickle.loads(end.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, ConnectionResetError):
                    answers[member] = (False, "the process died")
        return answers


def _serve(end: Connection, place: int, device_type: str) -> None:
    import os

    os.environ.update(GLOO_SOCKET_IFNAME="lo", TORCH_CPP_LOG_LEVEL="ERROR")
    import torch

    torch.set_num_threads(1)
    kept: dict[str, Any] = {"place": place, "device_type": device_type}
    while True:
        try:
            function, rank, size, port, args, kwargs = pickle.loads(end.recv_bytes())
        except EOFError:
            return
        try:
            answer = (True, _in_group(function, kept, rank, size, port, device_type, args, kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever went wrong here is for the test to see
            answer = (False, "".join(traceback.format_exception(error)))
        end.send_bytes(pickle.dumps(answer))


def _in_group(
    function: Callable[..., Any],
    kept: dict[str, Any],
    rank: int,
    size: int,
    port: int,
    device_type: str,
    args: Any,
    kwargs: Any,
) -> Any:
    import torch
    import torch.distributed as dist

    limit = timedelta(seconds=COLLECTIVE_S)
    if device_type == "cuda":
        torch.cuda.set_device(kept["place"])
    dist.distributed_c10d.default_pg_timeout = limit
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=dist.TCPStore("127.0.0.1", port, is_master=False, timeout=limit),
        rank=rank,
        world_size=size,
        timeout=limit,
    )
    try:
        return function(kept, rank, size, *args, **kwargs)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
