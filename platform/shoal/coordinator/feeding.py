"""The run's feed, the coordinator's side: started at a position, told what is committed, started anew when it must."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import ray

from shoal.capacity.fits import Need
from shoal.coordinator.book import Book
from shoal.coordinator.plan import RunPlan
from shoal.data.feed import FeedPlan, feed_name, start_feed
from shoal.data.reserving import Reservation, find, places_of, reserve
from shoal.job.growth import grows_on_the_way

RELEASE_EVERY_S = 1.0
CLOSE_S = 10.0
ANSWER_S = 10.0


class Feeding:
    """One feed at a time, and for as long as the run lasts the CPUs that it reads on."""

    def __init__(self, plan: RunPlan, book: Book, before: Callable[[int], int], at_hand: Any = None) -> None:
        """`before`: where the stream of samples stands after a step. `at_hand`: a feed's process that reads nothing at
        the moment; None: one is started when it is needed."""
        self._plan, self._book, self._before, self.at_hand = plan, book, before, at_hand
        self._released = 0
        self._released_at = time.monotonic()
        self._reserved: Reservation | None = None
        self._reserving: float | None = None
        self.feed: Any = None

    async def reserve(self) -> None:
        """Have the CPUs: before any worker asks for some, so that it is never the workers that take them. An earlier
        life of the coordinator may have reserved them already. Raises CapacityError."""
        cpus, name = self._plan.job.data.cpus, f"{self._plan.key}-reading"
        self._reserved = await asyncio.to_thread(find, name, cpus)
        if self._reserved is None:
            self._reserving = time.monotonic()
            self._reserved = await asyncio.to_thread(reserve, cpus, node_id=self._node, name=name)
            self._reserving = None

    @property
    def _node(self) -> str | None:
        """Where the data is, if it lies on a disk that only one node has."""
        return self._plan.node_id if self._plan.train.local else None

    def lacking(self, patience_s: float) -> tuple[Need, int] | None:
        """What the cluster has been asked for in vain for so long: the places, and how many of them."""
        if self._reserving is None or time.monotonic() - self._reserving < patience_s:
            return None
        return places_of(self._plan.job.data.cpus, self._node)

    async def start(self, step: int) -> None:
        """A new feed from the position after `step`. Raises DataError, CapacityError."""
        await self._close()
        assert self._reserved is not None, "the CPUs are reserved before the first feed starts"
        plan = self._plan
        self._released = self._before(step)
        wanted = FeedPlan(
            train=plan.train,
            validation=plan.validation,
            data=plan.job.data,
            seed=plan.job.seed,
            start=self._released,
            stop=None if plan.job.budget.spent is not None or grows_on_the_way(plan.job) else plan.positions.total,
            block=plan.job.batch.size,
            validation_samples=plan.validation_samples,
            reservation=self._reserved,
            node_id=plan.node_id,
            owner=plan.coordinator,
        )
        feed, self.at_hand = self.at_hand, None
        try:
            self.feed = await asyncio.to_thread(start_feed, wanted, feed)
        except ray.exceptions.RayActorError:
            if feed is None:
                raise
            self.feed = await asyncio.to_thread(start_feed, wanted)  # the one at hand had died

    def adopt(self, step: int) -> bool:
        """Take over the feed of an earlier life of the coordinator, which has released what is before `step`."""
        try:
            self.feed = ray.get_actor(feed_name(self._plan.coordinator), "shoal")
        except ValueError:
            return False
        self._released = self._before(step)
        return True

    async def ensure(self, step: int) -> None:
        """Have a feed that can serve everything after `step`: blocks that were released are read again."""
        if self.feed is not None and self._before(step) >= self._released and await self._answers():
            return
        await self.start(step)

    def release(self, committed: int) -> None:
        """Let the feed drop what is committed. Blocks hold many steps: once a second is often enough."""
        now = time.monotonic()
        if self.feed is not None and now - self._released_at >= RELEASE_EVERY_S:
            self._released_at, self._released = now, self._before(committed)
            self.feed.release.remote("train", self._released)

    async def end(self) -> None:
        """Close the feed, if there is one, and give its CPUs back. Its process stays at hand if a pool keeps it."""
        await self._close()
        if self._plan.hosted_by is None and self.at_hand is not None:
            ray.kill(self.at_hand, no_restart=True)
            self.at_hand = None
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            await asyncio.to_thread(reserved.give_back)

    async def _close(self) -> None:
        if self.feed is None:
            return
        feed, self.feed = self.feed, None
        try:
            await asyncio.wait_for(feed.close.remote(), CLOSE_S)
            self.at_hand = feed
            return
        except ray.exceptions.RayActorError:
            self._book.say("warning", "the feed was gone already")
        except asyncio.TimeoutError:
            self._book.say("warning", "the feed did not close in time and was killed")
        ray.kill(feed, no_restart=True)

    async def _answers(self) -> bool:
        try:
            await asyncio.wait_for(self.feed.status.remote(), ANSWER_S)
        except (ray.exceptions.RayError, asyncio.TimeoutError):
            self._book.say("warning", "the feed is gone; it is started again where the run stands")
            return False
        return True
