"""A coordinator's process between two runs: a pool keeps it warm, with its feed's process beside it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray

from shoal.coordinator.plan import RunPlan
from shoal.data.feed import new_feed
from shoal.errors import StaleProcess
from shoal.orphans import end_with
from shoal.pool.spec import NAMESPACE
from shoal.tracking.store import import_quietly
from shoal.worker.identity import changed_modules, note_modules

ANSWER_S = 30.0


class Shell:
    """What such a process knows of itself and of its pool. Travels to it with its birth."""

    def __init__(self, name: str, pool: str, node_id: str) -> None:
        """Names of its own actor and of the pool's; the node of both."""
        self.name, self.pool, self.node_id = name, pool, node_id
        self._feed: Any = None
        self._loaded: dict[str, str] = {}

    def watch(self, busy: Callable[[], bool]) -> None:
        """End this process when the pool is gone for good; a run may come to its end before."""
        end_with(self.pool, NAMESPACE, busy=busy)

    async def warm(self) -> None:
        """Import MLflow, start the feed's process."""
        if self._feed is None:
            self._feed = new_feed(self.name, self.node_id)
        await asyncio.gather(self._feed.status.remote(), asyncio.to_thread(import_quietly))

    def load(self, plan: bytes) -> RunPlan:
        """The plan of the next run. Raises StaleProcess if this process holds code that has changed on disk since."""
        if changed := changed_modules(self._loaded):
            raise StaleProcess(f"{', '.join(changed)} changed on disk after this process had imported it")
        return replace(pickle.loads(plan), hosted_by=self.name)

    def take_feed(self) -> Any:
        """The feed's process, if there is one at rest."""
        feed, self._feed = self._feed, None
        return feed

    def rest(self, feed: Any) -> None:
        """The run is over; `feed`: its process, if it still lives."""
        self._feed = feed
        note_modules(self._loaded)
        with suppress(ValueError):  # the pool is gone, and this process will follow
            self._reach().shell_rests.remote(self.name)

    def recall(self) -> RunPlan | None:
        """After a restart: the plan of the run that this process hosted; None: none, or nobody knows any more."""
        plan = None
        with suppress(ValueError, ray.exceptions.RayError):
            plan = ray.get(self._reach().plan_of.remote(self.name), timeout=ANSWER_S)
        if plan is None:
            self.rest(None)
            return None
        return replace(pickle.loads(plan), hosted_by=self.name)

    def _reach(self) -> Any:
        return ray.get_actor(self.pool, NAMESPACE)
