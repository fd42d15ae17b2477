"""The processes of a pool: started on places that the cluster grants, lent, brought to rest, replaced."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup

from shoal.pool.spec import PoolSpec
from shoal.worker.outfit import Kind
from shoal.worker.places import Places, end_worker, start_worker

REST_S = 30.0
"""What a worker may take to come out of its run and to let go of it; one that takes longer is replaced."""


@dataclass(slots=True)
class Berth:
    """One process of the pool."""

    id: str
    actor: Any
    place: PlacementGroup
    kind: Kind
    state: Literal["starting", "idle", "lent", "resting"] = "starting"
    run: str | None = None
    """The run that it is lent to."""
    lendings: int = 0
    told_in: int = 0
    """Number of the first answer in which the run heard of it."""

    @property
    def lending(self) -> str:
        """Names this process, and this time that it is lent."""
        return f"{self.id}/{self.lendings}"


class Berths:
    """All processes of a pool."""

    def __init__(
        self, prefix: str, spec: PoolSpec, owner: str, kind: Callable[[], Kind], changed: Callable[[], None]
    ) -> None:
        """`owner`: name of the pool's actor. `kind`: what the next process is to be made ready for. `changed` is called
        when a process came to rest, or is gone."""
        self._prefix, self._spec, self._owner = prefix, spec, owner
        self._kind, self._changed = kind, changed
        self._places = Places(prefix, spec.place)
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.all: dict[str, Berth] = {}

    @property
    def asked(self) -> int:
        """Places that the cluster has not granted yet."""
        return len(self._places)

    def stuck(self, seconds: float) -> int:
        """How many places have been asked for so long ago in vain."""
        return self._places.older_than(seconds)

    def have(self, count: int) -> None:
        """Have `count` processes: ask for places for more. None that is there is ended."""
        self._places.ask(max(0, count - len(self.all)))

    def of(self, run: str) -> list[Berth]:
        """What is lent to `run`."""
        return [b for b in self.all.values() if b.run == run and b.state == "lent"]

    def free(self, kind: Kind | None = None) -> list[Berth]:
        """What can be lent, to a run of that kind: first what is ready."""
        found = [b for b in self.all.values() if b.run is None and b.state in ("idle", "starting")]
        return sorted((b for b in found if kind in (None, b.kind)), key=lambda b: b.state != "idle")

    def kinds(self) -> Counter[Kind]:
        """How many there are of each kind."""
        return Counter(b.kind for b in self.all.values())

    async def take_in(self) -> None:
        """For ever: start a process on every place that the cluster grants."""
        while True:
            for place in await self._places.granted():
                name, self._next = f"{self._prefix}w{self._next}", self._next + 1
                actor = start_worker(name, self._spec.place, place, self._owner)
                self.all[name] = berth = Berth(name, actor, place, self._kind())
                self._spawn(self._start(berth))
                self._spawn(self._watch(berth))
            self._changed()

    def lend(self, berth: Berth, run: str, told_in: int) -> None:
        """It belongs to `run` now. One that is being started may be lent: the run's calls wait for it."""
        berth.state, berth.run, berth.told_in = "lent", run, told_in
        berth.lendings += 1

    def take_back(self, berth: Berth, *, fit: bool) -> None:
        """It is lent no more; once it has let go of the run it is free."""
        berth.run = None
        if not fit:
            self.discard(berth)
            return
        berth.state = "resting"
        self._spawn(self._rest(berth))

    def discard(self, berth: Berth) -> None:
        """End the process. Another one takes its place if it is wanted."""
        if self.all.pop(berth.id, None) is not None:
            end_worker(berth.actor, berth.place)

    def end_all(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        self._places.ask(0)
        for berth in list(self.all.values()):
            self.discard(berth)

    async def _start(self, berth: Berth) -> None:
        ready = berth.actor.warm_process.remote(berth.kind, sharded=self._spec.sharded)
        try:
            await asyncio.wait_for(ready, self._spec.start_s)
        except (asyncio.TimeoutError, ray.exceptions.RayError):
            if berth.state == "starting":  # else the run that has it sees that for itself
                self.discard(berth)
        if berth.state == "starting":
            berth.state = "idle"
        self._changed()

    async def _rest(self, berth: Berth) -> None:
        try:
            await asyncio.wait_for(berth.actor.dismiss.remote(), REST_S)
            await asyncio.wait_for(berth.actor.rest.remote(), REST_S)
            berth.state = "idle"
        except (asyncio.TimeoutError, ray.exceptions.RayError):
            self.discard(berth)  # it hangs, or its device is of no use any more
        self._changed()

    async def _watch(self, berth: Berth) -> None:
        """Learn of its death at once."""
        try:
            await berth.actor.stay.remote(None)
        except ray.exceptions.RayError:
            self.discard(berth)
            self._changed()

    def _spawn(self, doing: Any) -> None:
        task = asyncio.ensure_future(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
