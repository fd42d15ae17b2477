"""Where a run's workers come from: a supply. Here: the cluster, which gives a place and a new process for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray.util.placement_group import PlacementGroup

from shoal.job import Workers
from shoal.worker.places import Places, end_worker, named_actors, start_worker, too_few


@dataclass(frozen=True, slots=True)
class Recruit:
    """A worker that a supply gives."""

    id: str
    """The supply's own name for it, and for this time that it is given."""
    actor: Any
    place: PlacementGroup | None = None
    waited_s: float = 0.0
    """How long it had been asked for before it was given."""


class Supply(Protocol):
    """Gives workers to one run and takes them back. One contract test for all."""

    @property
    def allotted(self) -> int | None:
        """How many the run may have; None: as many as it wants and the supply has. If it has more, it lets the
        rest go."""
        ...

    @property
    def lost(self) -> str | None:
        """Why there will never be anything from this supply any more; None: there may be."""
        ...

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

    def unmet(self, seconds: float) -> int:
        """How many the cluster itself has been asked for so long ago in vain."""
        ...


class ClusterSupply:
    """Asks the cluster for a place for each worker and starts a process there."""

    allotted = None
    lost = None

    def __init__(self, prefix: str, wanted: Workers, owner: str, *, reading: float = 0.0) -> None:
        """`prefix` of the actors' names; `owner`: name of the actor that they live for; `reading`: CPUs that the run
        keeps for reading data, to be told where there are too few."""
        self._prefix, self._wanted, self._owner, self._reading = prefix, wanted, owner, reading
        self._places = Places(prefix, wanted)
        self._next = 0

    @property
    def asked(self) -> int:
        """Places that the cluster has not granted yet."""
        return len(self._places)

    def want(self, count: int, have: int) -> None:
        """Ask for more places, or take requests back."""
        self._places.ask(max(0, count - have))

    async def recruits(self) -> list[Recruit]:
        """Start a worker on every place that the cluster grants."""
        return [self._start(place) for place in await self._places.granted()]

    def _start(self, place: PlacementGroup) -> Recruit:
        name, self._next = f"{self._prefix}w{self._next}", self._next + 1
        actor = start_worker(name, self._wanted, place, self._owner)
        return Recruit(name, actor, place, self._places.granted_after_s)

    def take_back(self, recruit: Recruit, *, fit: bool) -> None:
        """End the process and give its place back."""
        end_worker(recruit.actor, recruit.place)

    def close(self) -> None:
        """Take every request back."""
        self._places.ask(0)

    async def find(self) -> list[Recruit]:
        """The workers that an earlier life of the coordinator started, by their names."""
        names = named_actors(f"{self._prefix}w")
        self._next = max((int(name[len(self._prefix) + 1 :]) + 1 for name in names), default=0)
        return [Recruit(name, ray.get_actor(name, "shoal")) for name in names]

    def keep(self, recruits: Sequence[Recruit]) -> None:
        """Give back the places that nobody uses."""
        self._places.drop_others({r.place.id.hex() for r in recruits if r.place is not None})

    def shortage(self, found: int) -> str:
        """Why the smallest view cannot be had, with what the cluster has."""
        return too_few(found, self._wanted, self._reading)

    def unmet(self, seconds: float) -> int:
        """Places that were asked for so long ago."""
        return self._places.older_than(seconds)
