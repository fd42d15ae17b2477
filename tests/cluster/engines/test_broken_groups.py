"""Groups that break: whoever survives is free at once, keeps its process, and trains on in the next group."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import nn

from shoal.job import Optimizer
from shoal.membership.messages import ViewOrder
from shoal.worker.group import cut_group, dissolve_group, form_group
from shoal.worker.sockets import tcp_sockets
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import ENGINES, EXACT, difference, make_job, state_of
from tests.support.engine_runs import plain
from tests.support.process_pool import ProcessPool
from tests.support.view_members import LIMIT_S, Crew, Fault, Told, live

pytestmark = pytest.mark.cluster

PHASES: tuple[Literal["forward", "backward", "update"], ...] = ("forward", "backward", "update")
SGD = Optimizer(name="sgd", lr=1e-3, clip_norm=0.5)
"""Adam would turn the rounding of a tiny gradient into a whole step."""
LARGE = 3 << 23
"""Elements of a message that is on its way for long."""


@dataclass(frozen=True)
class Deep(tasks.Regression):
    """Large enough for DDP to reduce it in several buckets, while the backward pass goes on."""

    width: int = 384

    def build(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Linear(tasks.FEATURES, self.width)]
        for _ in range(5):
            layers += [nn.Tanh(), nn.Linear(self.width, self.width)]
        return nn.Sequential(*layers, nn.Tanh(), nn.Linear(self.width, 1))


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    """Five processes; those that die are replaced by forks."""
    pool = ProcessPool(5, preload="tests.support.warm")
    yield Crew(pool)
    pool.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_kill_frees_all_survivors_and_they_train_on_with_a_newcomer(crew: Crew, engine: str) -> None:
    job = make_job(Deep(), engine, optimizer=SGD)
    right = plain(job, 5)[0]
    state = state_of(all_well(crew.run([0, 1, 2, 3], job, (0, 2))))
    for phase, members, victim, survivors in (
        ("forward", [0, 1, 2, 3], 3, [0, 1, 2, 4]),  # 4 is new
        ("backward", [0, 1, 2, 4], 0, [1, 2, 4]),  # the first one, at whose store they had met
        ("update", [1, 2, 4], 2, [1, 4]),
    ):
        crew.start(members, live, job, (2, 5), state, Fault(victim, 4, phase))  # type: ignore[arg-type]
        assert crew.pool.died(victim)
        # Nobody cuts: each one's connections ending is what tells its neighbours.
        ends = crew.told([m for m in members if m != victim])
        assert [t.error is not None and "TaskError" not in t.error for t in ends] == [True] * len(ends)
        assert all(t.steps in (1, 2) for t in ends), "of three steps the second broke, on some after it was applied"
        again = all_well(crew.run(survivors, job, (2, 5), state))
        assert difference(again[0].parameters, right) < EXACT
        crew.replace(victim)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cut_frees_those_who_wait_for_a_member_that_was_stopped(crew: Crew, engine: str) -> None:
    job = make_job(Deep(), engine, optimizer=SGD)
    state = state_of(all_well(crew.run([0, 1, 2, 3], job, (0, 2))))
    crew.start([0, 1, 2, 3], live, job, (2, 5), state, Fault(2, 4, "backward", signal.SIGSTOP))
    wait_until_stopped(crew.pool, 2)
    crew.cut([0, 1, 3])
    ends = crew.told([0, 1, 3])
    assert all(t.error is not None and "TaskError" not in t.error for t in ends)
    again = all_well(crew.run([3, 0, 1], job, (2, 5), state))
    assert difference(again[0].parameters, plain(job, 5)[0]) < EXACT
    crew.replace(2)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
@pytest.mark.parametrize("what", ["transfer", "broadcast", "gather", "exchange"])
def test_a_cut_frees_those_who_wait_for_the_rest_of_a_message(crew: Crew, what: str, how: str) -> None:
    """Gloo itself would keep them until the group's time-out, though the connection is gone."""
    crew.start([0, 1, 2], talk, what, how)
    if how == "SIGKILL":
        assert crew.pool.died(2)
    else:
        wait_until_stopped(crew.pool, 2)
    crew.cut([0, 1])
    assert "well" not in crew.told([0, 1])
    crew.start([0, 1], talk, "hello")
    assert crew.told([0, 1]) == ["well"] * 2
    crew.replace(2)


def test_a_cut_frees_those_who_wait_for_a_member_that_does_not_come(crew: Crew) -> None:
    crew.start([3, 0, 1, 2], talk, "hello", absent=[2, 3])
    crew.cut([0, 1])
    assert "well" not in crew.told([0, 1])
    crew.start([0, 1, 2, 3], talk, "hello")
    assert crew.told(range(4)) == ["well"] * 4


def all_well(told: list[Told]) -> list[Told]:
    assert [t.error for t in told] == [None] * len(told)
    return told


def wait_until_stopped(pool: ProcessPool, member: int) -> None:
    deadline = time.monotonic() + 60
    while psutil.Process(pool.pid(member)).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline, f"process {member} did not stop"
        time.sleep(0.01)


def talk(kept: dict[str, Any], order: ViewOrder, what: str, how: str = "") -> str:
    """Large messages on and on, of which the last member vanishes in the first. If `what` is "hello", one small one."""
    rank, last = order.view.rank(order.member), order.view.size - 1
    try:
        form_group(order, torch.device("cpu"), kept["store"] if rank == 0 else None, LIMIT_S)
        if what == "hello":
            dist.all_reduce(torch.ones(1))
            return "well"
        x = torch.ones(LARGE)
        if rank == last:
            pending = send(what, x, rank, last)
            while not in_flight():
                assert pending is not None
            os.kill(os.getpid(), getattr(signal, how))
        while True:
            work = send(what, x, rank, last)
            if work is not None:
                work.wait()
    except RuntimeError as error:
        cut_group(order.view.number)
        return type(error).__name__
    finally:
        dissolve_group()


def send(what: str, x: torch.Tensor, rank: int, last: int) -> dist.Work | None:
    """Begin to move `x` from the last member to others."""
    if what == "transfer" and rank == 1:
        return dist.irecv(x[:1], 0)  # of one who will never send
    if what == "transfer":
        return dist.isend(x, 0) if rank == last else dist.irecv(x, last)
    if what == "broadcast":
        return dist.broadcast(x, last, async_op=True)
    if what == "gather":
        return dist.gather(x, [x.clone() for _ in range(last + 1)] if rank == 0 else None, async_op=True)
    return dist.all_to_all_single(torch.empty_like(x), x, async_op=True)


def in_flight() -> bool:
    """Whether a part of the message has left this process, by the kernel's count of bytes."""
    info = (s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136) for _, s in tcp_sockets())
    return any(int.from_bytes(i[120:128], sys.byteorder) > LARGE // 8 for i in info)
