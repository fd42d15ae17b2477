"""Persistent worker processes for tests of collective code: groups are formed and dissolved, processes stay.

Starting a process and importing torch takes seconds; forming a gloo group takes milliseconds. So a test session starts
the processes once and every case forms the group it needs. Functions and arguments travel by pickle, functions
therefore by name: they must live at the top of an importable module.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from shoal.engines.determinism import prepare_process

TOKEN = b"known to the members"
COLLECTIVE_S = 60.0
"""Deadline of every collective inside a group."""


class RemoteFailure(AssertionError):
    """A function failed in one of the processes; the message is its traceback there."""


class ProcessPool:
    """`size` processes, each with a dictionary that lives as long as the process."""

    def __init__(
        self,
        size: int,
        *,
        device_type: str = "cpu",
        numerics: Literal["fast", "exact"] = "fast",
        preload: str | None = None,
    ) -> None:
        """`preload`: a module; processes are forked from one that has imported it, for tests that need many of them."""
        self._context: Any = multiprocessing.get_context("forkserver" if preload else "spawn")
        if preload:
            self._context.set_forkserver_preload([preload])
        self._kind = (device_type, numerics)
        self._store: Any = None
        self._groups = 0
        begun = [self._begin(place) for place in range(size)]
        self._ends = [end for end, _ in begun]
        self._processes = [process for _, process in begun]

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
        meeting = self._meeting()
        for rank, member in enumerate(members):
            task = (function, rank, len(members), meeting, args, kwargs)
            self._ends[member].send_bytes(pickle.dumps(task))
        answers = self._gather(members, time.monotonic() + timeout_s)
        failures = [f"process {m} (rank {r}):\n{answers[m][1]}" for r, m in enumerate(members) if not answers[m][0]]
        if failures:
            raise RemoteFailure("\n".join(failures))
        return [answers[m][1] for m in members]

    def start(self, member: int, function: Callable[..., Any], *args: Any) -> None:
        """Begin `function(kept, *args)` in one process, without a group, and do not wait for it: see `answer`."""
        self._ends[member].send_bytes(pickle.dumps((function, None, None, None, args, {})))

    def answer(self, member: int, timeout_s: float = 60.0) -> Any:
        """What the function that was started there returned.

        Raises RemoteFailure if it failed or the process died, and TimeoutError if it has not answered.
        """
        good, value = self._gather([member], time.monotonic() + timeout_s)[member]
        if not good:
            raise RemoteFailure(f"process {member}:\n{value}")
        return value

    def signal(self, member: int, number: int) -> None:
        """Send a signal to one process."""
        os.kill(self.pid(member), number)

    def pid(self, member: int) -> int:
        pid = self._processes[member].pid
        assert pid is not None
        return pid

    def died(self, member: int, timeout_s: float = 60.0) -> bool:
        """Whether the process is gone, or is so before the time is out."""
        self._processes[member].join(timeout_s)
        return not self._processes[member].is_alive()

    def renew(self, member: int) -> None:
        """A new process in the place of one, which is ended if it lives."""
        self._ends[member].close()
        self._processes[member].kill()
        self._processes[member].join()
        self._ends[member], self._processes[member] = self._begin(member)

    def _begin(self, place: int) -> tuple[Connection, Any]:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, place, *self._kind), daemon=True)
        process.start()
        there.close()
        return here, process

    def close(self) -> None:
        """End the processes."""
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()

    def _meeting(self) -> tuple[str, int]:
        """Where the members of the next group meet, and its number."""
        from shoal.worker.rendezvous import Rendezvous

        if self._store is None:
            self._store = Rendezvous("127.0.0.1", TOKEN)
        self._groups += 1
        self._store.begin(self._groups)
        return self._store.address, self._groups

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


def _serve(end: Connection, place: int, device_type: str, numerics: Literal["fast", "exact"]) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", TORCH_CPP_LOG_LEVEL="ERROR")
    prepare_process(numerics, threads=1)
    kept: dict[str, Any] = {"place": place, "device_type": device_type}
    while True:
        try:
            function, rank, size, meeting, args, kwargs = pickle.loads(end.recv_bytes())
        except EOFError:
            return
        try:
            if meeting is None:
                answer = (True, function(kept, *args))
            else:
                answer = (True, _in_group(function, kept, rank, size, meeting, device_type, args, kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever went wrong here is for the test to see
            answer = (False, "".join(traceback.format_exception(error)))
        end.send_bytes(pickle.dumps(answer))


def _in_group(
    function: Callable[..., Any],
    kept: dict[str, Any],
    rank: int,
    size: int,
    where: tuple[str, int],
    device_type: str,
    args: Any,
    kwargs: Any,
) -> Any:
    import torch
    import torch.distributed as dist

    from shoal.worker.rendezvous import Meeting

    limit = timedelta(seconds=COLLECTIVE_S)
    meeting = Meeting(*where, limit, TOKEN)
    meeting.open()
    if device_type == "cuda":
        torch.cuda.set_device(kept["place"])
    dist.distributed_c10d.default_pg_timeout = limit
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo",
        store=meeting,
        rank=rank,
        world_size=size,
        timeout=limit,
    )
    try:
        dist.all_reduce(torch.zeros(1))  # nobody is through and gone before the others are connected
        return function(kept, rank, size, *args, **kwargs)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        meeting.close()
