"""Where a run's workers come from: a supply. Here: the cluster, which gives a place and a new process for each.

Placement groups cannot be resized, so each worker has its own. Asking for groups, not for bare actors, is what Ray's
autoscaler understands. Actors and groups are detached: they outlive a coordinator that is being restarted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.job import Workers
from shoal.worker.actor import LINE, LINE_THREADS, Worker

LOOK_S = (0.05, 1.0)
"""Between two looks for places that were granted: at first, and at most."""
EAGER_S = 10.0
"""After something was asked for, how long to look as often as at first."""


@dataclass(frozen=True, slots=True)
class Recruit:
    """A worker that a supply gives."""

    id: str
    """The supply's own name for it, and for this time that it is given."""
    actor: Any
    place: PlacementGroup | None = None


class Supply(Protocol):
    """Gives workers to one run and takes them back. One contract test for all."""

    allotted: int | None
    """How many the run may have; None: as many as it wants and the supply has. If it has more, it lets the rest go."""

    @property
    def asked(self) -> int:
        """How many it has been asked for and has not given yet."""
        ...

    def want(self, count: int, have: int) -> None:
        """The run wants `count` workers and has `have`; again and again, and never waits."""
        ...

    async def recruits(self) -> list[Recruit]:
        """Wait until there are some, and give them."""
        ...

    def take_back(self, recruit: Recruit, *, fit: bool) -> None:
        """The run does not need it any more. `fit`: nothing is known against using it again. Never waits."""
        ...

    def close(self) -> None:
        """The run wants nothing more and has given all back."""
        ...

    async def find(self) -> list[Recruit]:
        """After a restart of the coordinator: what this run was given earlier and has not given back."""
        ...

    def keep(self, recruits: Sequence[Recruit]) -> None:
        """After `find`: these are used. What else was asked for earlier is taken back."""
        ...

    def shortage(self, found: int) -> str:
        """Why no more than `found` workers are there, for people."""
        ...


class ClusterSupply:
    """Asks the cluster for a place for each worker and starts a process there."""

    def __init__(self, prefix: str, wanted: Workers, owner: str) -> None:
        """`prefix` of the actors' names; `owner`: name of the actor that they live for."""
        self.allotted: int | None = None
        self._prefix, self._wanted, self._owner = prefix, wanted, owner
        self._places = self._next = 0
        self._asked: list[PlacementGroup] = []
        self._asked_at = 0.0

    @property
    def asked(self) -> int:
        """Places that the cluster has not granted yet."""
        return len(self._asked)

    def want(self, count: int, have: int) -> None:
        """Ask for more places, or take requests back."""
        for _ in range(count - have - len(self._asked)):
            self._places += 1
            self._asked_at = asyncio.get_running_loop().time()
            name = f"{self._prefix}place{self._places}"
            bundle = bundle_of(self._wanted)
            self._asked.append(placement_group([bundle], strategy="PACK", name=name, lifetime="detached"))
        while self._asked and have + len(self._asked) > count:
            remove_placement_group(self._asked.pop())

    async def recruits(self) -> list[Recruit]:
        """Look for places that the cluster has granted; start a worker on each."""
        loop, pause = asyncio.get_running_loop(), LOOK_S[0]
        while True:
            asked = list(self._asked)
            found = await asyncio.to_thread(lambda asked: [p for p in asked if p.wait(0)], asked) if asked else []
            granted = [p for p in found if p in self._asked]  # none that was taken back meanwhile
            if granted:
                self._asked = [p for p in self._asked if p not in granted]
                return [self._start(place) for place in granted]
            await asyncio.sleep(pause)
            pause = LOOK_S[0] if loop.time() - self._asked_at < EAGER_S else min(2 * pause, LOOK_S[1])

    def _start(self, place: PlacementGroup) -> Recruit:
        name, self._next = f"{self._prefix}w{self._next}", self._next + 1
        return Recruit(name, start_worker(name, self._wanted, place, self._owner), place)

    def take_back(self, recruit: Recruit, *, fit: bool) -> None:
        """End the process and give its place back."""
        ray.kill(recruit.actor, no_restart=True)
        if recruit.place is not None:
            remove_placement_group(recruit.place)

    def close(self) -> None:
        """Take every request back."""
        while self._asked:
            remove_placement_group(self._asked.pop())

    async def find(self) -> list[Recruit]:
        """The workers that an earlier life of the coordinator started, by their names."""
        names = named_actors(f"{self._prefix}w")
        self._next = max((int(name[len(self._prefix) + 1 :]) + 1 for name in names), default=0)
        return [Recruit(name, ray.get_actor(name, "shoal")) for name in names]

    def keep(self, recruits: Sequence[Recruit]) -> None:
        """Give back the places that nobody uses."""
        kept = {r.place.id.hex() for r in recruits if r.place is not None}
        for number, place in placement_group_table().items():
            name = place["name"]
            if not name.startswith(f"{self._prefix}place"):
                continue
            self._places = max(self._places, int(name[len(self._prefix) + len("place") :]))
            if number not in kept and place["state"] != "REMOVED":
                remove_placement_group(get_placement_group(name))

    def shortage(self, found: int) -> str:
        """Why the smallest view cannot be had, with what the cluster has."""
        want, bundle = self._wanted, bundle_of(self._wanted)
        total = ray.cluster_resources()
        has = ", ".join(f"{name}: {total.get(name, 0):g}" for name in bundle)
        return (
            f"only {found} of at least workers.min={want.min} workers found a place. Each needs {dict(bundle)}; the "
            f"whole cluster has {has}, part of it kept for reading data. Lower workers.min or workers.cpus, add nodes, "
            f"or, if an autoscaler is still adding some, raise workers.start_s={want.start_s:g}"
        )


def start_worker(name: str, wanted: Workers, place: PlacementGroup, owner: str) -> Any:
    """A new worker process on `place`, living for the actor named `owner`; returns its handle at once."""
    return (
        ray.remote(concurrency_groups={LINE: LINE_THREADS})(Worker)  # type: ignore[call-overload]
        .options(
            name=name,
            namespace="shoal",
            lifetime="detached",
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            resources=dict(wanted.resources) or None,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_capture_child_tasks=False),
        )
        .remote(owner)
    )


def named_actors(prefix: str) -> list[str]:
    """Names of the living actors of Shoal that begin so."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"] for a in found if a["namespace"] == "shoal" and a["name"].startswith(prefix))


def bundle_of(want: Workers) -> Mapping[str, float]:
    """What one worker takes of the cluster."""
    bundle = {"CPU": want.cpus, "GPU": want.gpus, **dict(want.resources)}
    return {name: amount for name, amount in bundle.items() if amount}
