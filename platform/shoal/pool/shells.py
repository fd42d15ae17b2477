"""Processes of coordinators that wait for a run: so many are kept warm, each with its feed's process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoal.coordinator.actor import Coordinator
from shoal.coordinator.shell import Shell
from shoal.data.feed import feed_name
from shoal.errors import StaleProcess
from shoal.pool.spec import NAMESPACE

START_S = 240.0
BEGIN_S = 60.0
RESTARTS = 10
"""How often Ray may start one again that died."""
TRIES = 3


@dataclass(slots=True)
class Host:
    """One process."""

    name: str
    actor: Any
    warm: bool = False
    run_id: str | None = None
    """The run that it hosts."""
    plan: bytes | None = None
    """That run's plan, for the case that the process dies."""


class Shells:
    """Those of one pool, all on its node, whose disk holds the run folders."""

    def __init__(self, prefix: str, pool: str, node_id: str, count: int, over: Callable[[str], None]) -> None:
        """`over` is called with the id of a run that a host has left, or can never go on with."""
        self._prefix, self._pool, self._node_id, self._count, self._over = prefix, pool, node_id, count, over
        self._next = 0
        self._hosts: dict[str, Host] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def keep_warm(self) -> None:
        """Start as many as are missing."""
        while len(self._hosts) < self._count:
            self._start()

    def warm(self) -> int:
        """How many are warm and free."""
        return sum(h.warm and h.run_id is None for h in self._hosts.values())

    async def begin(self, run_id: str, node_id: str, plan: bytes) -> str | None:
        """Let one host the run; returns its name. None: the run's folder is on another node. Raises what is wrong with
        the run before it begins."""
        if node_id != self._node_id:
            return None
        for _ in range(TRIES):
            host = min(self._free(), key=lambda h: not h.warm, default=None) or self._start()
            host.run_id, host.plan = run_id, plan
            try:
                await asyncio.wait_for(host.actor.begin.remote(plan), START_S)
                return host.name
            except (StaleProcess, asyncio.TimeoutError, ray.exceptions.RayActorError):
                self.discard(host.name)
        return None

    def rests(self, name: str) -> None:
        """A host has left its run."""
        host = self._hosts.get(name)
        if host is not None and host.run_id is not None:
            run_id, host.run_id, host.plan = host.run_id, None, None
            self._over(run_id)

    def plan_of(self, name: str) -> bytes | None:
        """What it hosts."""
        host = self._hosts.get(name)
        return host.plan if host is not None else None

    def host_of(self, run_id: str) -> str | None:
        """Who hosts the run."""
        return next((h.name for h in self._hosts.values() if h.run_id == run_id), None)

    def discard(self, name: str) -> None:
        """End a host; its feed follows."""
        host = self._hosts.pop(name, None)
        if host is None:
            return
        for actor in (feed_name(name), name):
            try:
                ray.kill(ray.get_actor(actor, NAMESPACE), no_restart=True)
            except ValueError:
                continue  # it is gone
        if host.run_id is not None:
            self._over(host.run_id)

    def end_free(self) -> None:
        """End all that host nothing; the others end when their run has."""
        for task in self._tasks:
            task.cancel()
        for host in self._free():
            self.discard(host.name)

    def _free(self) -> list[Host]:
        return [h for h in self._hosts.values() if h.run_id is None]

    def _start(self) -> Host:
        name, self._next = f"{self._prefix}c{self._next}", self._next + 1
        actor = (
            ray.remote(Coordinator)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",  # a run may come to its end although the pool is gone
                num_cpus=0,
                max_restarts=RESTARTS,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._node_id, soft=False),
            )
            .remote(None, Shell(name, self._pool, self._node_id))
        )
        self._hosts[name] = host = Host(name, actor)
        for doing in (self._warm(host), self._watch(host)):
            task = asyncio.ensure_future(doing)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return host

    async def _warm(self, host: Host) -> None:
        try:
            await asyncio.wait_for(host.actor.warm.remote(), START_S)
            host.warm = True
        except (asyncio.TimeoutError, ray.exceptions.RayError):
            if host.run_id is None:
                self.discard(host.name)

    async def _watch(self, host: Host) -> None:
        """Learn at once when it is gone for good: Ray starts it again a few times."""
        while True:
            try:
                await host.actor.stay.remote()
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(1.0)
            except ray.exceptions.RayError:
                try:
                    ray.get_actor(host.name, NAMESPACE)
                    await asyncio.sleep(1.0)
                except ValueError:
                    self.discard(host.name)
                    return
