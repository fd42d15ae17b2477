"""Workers as Ray actors: asked for one placement group each, started side by side, ended together.

Placement groups cannot be resized, so each worker has its own. Asking for groups, not for bare actors, is what Ray's
autoscaler understands.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.errors import CapacityError, TaskError, WorkerLost
from shoal.job import Workers
from shoal.membership.view import MemberId
from shoal.worker.actor import Outfit, Worker, WorkerFacts

SETTLE_S = 3.0
"""Once `min` workers have their place, how long to wait for the rest of `max` before starting without them."""


@dataclass(slots=True)
class Hand:
    """One worker at hand."""

    member: MemberId
    actor: Any
    place: PlacementGroup
    facts: WorkerFacts | None = None


class Crew:
    """All workers of a run."""

    def __init__(self, wanted: Workers, outfit: Outfit, say: Callable[[str, str], None]) -> None:
        self._wanted, self._outfit, self._say = wanted, outfit, say
        self._names = (f"w{i}" for i in itertools.count())
        self.hands: dict[MemberId, Hand] = {}

    async def start(self) -> Mapping[MemberId, WorkerFacts]:
        """Start between `min` and `max` workers and wait until each has built its model.

        Raises CapacityError if fewer than `min` find a place in time, TaskError if the user's code fails, WorkerLost
        if a worker dies while it starts.
        """
        places = await self._places()
        for place in places:
            member = next(self._names)
            actor = (
                ray.remote(Worker)
                .options(
                    **_resources(self._wanted),
                    max_restarts=0,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        place, placement_group_capture_child_tasks=False
                    ),
                )
                .remote(replace(self._outfit, member=member))
            )
            self.hands[member] = Hand(member, actor, place)
        await asyncio.gather(*(self._prepare(h) for h in self.hands.values()))
        return {h.member: h.facts for h in self.hands.values() if h.facts is not None}

    def end(self) -> None:
        """End every worker at once and give its place back."""
        for hand in self.hands.values():
            ray.kill(hand.actor, no_restart=True)
            remove_placement_group(hand.place)
        self.hands.clear()

    async def _places(self) -> list[PlacementGroup]:
        want = self._wanted
        bundle = _bundle(want)
        asked = [placement_group([bundle], strategy="PACK") for _ in range(want.max)]
        deadline = time.monotonic() + want.start_s
        settled: float | None = None
        told = False
        while True:
            ready = [p for p in asked if p.wait(0)]
            now = time.monotonic()
            if len(ready) == want.max or (settled is not None and now >= settled):
                break
            if len(ready) >= want.min and settled is None:
                settled = now + SETTLE_S
            if now >= deadline:
                break
            if not told and settled is None and now > deadline - want.start_s + SETTLE_S:
                self._say(
                    "warning", f"waiting up to {want.start_s:g}s for the cluster: {_too_few(len(ready), want, bundle)}"
                )
                told = True
            await asyncio.sleep(0.05)
        for place in asked:
            if place not in ready:
                remove_placement_group(place)
        if len(ready) < want.min:
            for place in ready:
                remove_placement_group(place)
            raise CapacityError(_too_few(len(ready), want, bundle))
        if len(ready) < want.max:
            self._say("info", f"{len(ready)} workers found a place; up to {want.max} were asked for")
        return ready

    async def _prepare(self, hand: Hand) -> None:
        try:
            hand.facts = await asyncio.wait_for(hand.actor.prepare.remote(), self._wanted.start_s)
        except asyncio.TimeoutError:
            raise WorkerLost(
                f"worker {hand.member} did not start within workers.start_s={self._wanted.start_s:g}s; importing torch "
                f"or building the model takes longer, or the node is overloaded; raise workers.start_s"
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, TaskError):
                raise error.cause from None
            raise
        except (ActorDiedError, RayActorError) as error:
            raise WorkerLost(f"worker {hand.member} died while it started: {error}") from None


def _bundle(want: Workers) -> dict[str, float]:
    bundle = {"CPU": want.cpus, "GPU": want.gpus, **dict(want.resources)}
    return {name: amount for name, amount in bundle.items() if amount}


def _resources(want: Workers) -> dict[str, Any]:
    return {"num_cpus": want.cpus, "num_gpus": want.gpus, "resources": dict(want.resources) or None}


def _too_few(found: int, want: Workers, bundle: Mapping[str, float]) -> str:
    total = ray.cluster_resources()
    has = ", ".join(f"{name}: {total.get(name, 0):g}" for name in bundle)
    return (
        f"only {found} of at least workers.min={want.min} workers found a place. Each needs {dict(bundle)}; the whole "
        f"cluster has {has}, part of it kept for reading data. Lower workers.min or workers.cpus, add nodes, or, if an "
        f"autoscaler is still adding some, raise workers.start_s={want.start_s:g}"
    )
