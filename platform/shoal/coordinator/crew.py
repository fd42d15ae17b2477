"""Workers as Ray actors: asked for one placement group each, started and warmed up side by side, ended one by one.

Placement groups cannot be resized, so each worker has its own. Asking for groups, not for bare actors, is what Ray's
autoscaler understands. Actors and groups are detached: they outlive a coordinator that is being restarted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.errors import ShoalError, WorkerLost, WorkerRefused
from shoal.job import Workers
from shoal.membership.admission import refusal
from shoal.membership.view import MemberId
from shoal.worker.actor import LINE, LINE_THREADS, Outfit, Standing, Worker, WorkerFacts

SETTLE_S = 3.0
"""Once `min` workers have their place, how long to wait for the rest of `max` before starting without them."""
LOOK_S = (0.05, 1.0)
"""Between two looks for places that were granted: at first, and at most."""
REFUSED_S = (5.0, 300.0)
"""After a worker was refused, until more are asked for, doubling: the next one may come from the same node."""


@dataclass(slots=True)
class Hand:
    """One worker at hand."""

    member: MemberId
    actor: Any
    place: PlacementGroup | None
    facts: WorkerFacts | None = None
    """None until it is ready."""
    readiness: int = 0
    """How many were ready before it."""
    leaving: str | None = None
    """Why it is to leave at the next boundary."""
    reclaimed: float | None = None
    """Its node is being taken back: Unix seconds when; 0: nobody said."""
    since: float = field(default_factory=time.time)
    """Unix seconds: when it was started, or became ready."""
    stays: asyncio.Task[None] | None = None

    @property
    def stays_s(self) -> float:
        """Seconds for which it could still stay if it is to leave."""
        return max(0.0, self.reclaimed - time.time()) if self.reclaimed else 0.0


class Crew:
    """All workers of a run."""

    def __init__(
        self,
        prefix: str,
        wanted: Workers,
        outfit: Outfit,
        changed: Callable[[], None],
        gone: Callable[[MemberId, BaseException], None],
    ) -> None:
        """`prefix` of the actors' names; `changed` is called when a worker became ready or failed to start, `gone` when
        one that was ready has died."""
        self._prefix, self._wanted, self._outfit, self._changed, self._gone = prefix, wanted, outfit, changed, gone
        self._next = 0
        self._target = self._places = 0
        self._asked: list[PlacementGroup] = []
        self._starting: dict[MemberId, asyncio.Task[None]] = {}
        self._begun = time.monotonic()
        self._enough_at: float | None = None
        self._ready = 0
        self._known: WorkerFacts | None = None
        self._refused = ""
        self._ask_from, self._hold_off_s = 0.0, REFUSED_S[0]
        self.hands: dict[MemberId, Hand] = {}
        self.warm: Callable[[Any], Awaitable[None]] | None = None
        """Given an actor: its dry step; None: nobody would wait for the newcomer's first step anyway."""
        self.failures: list[tuple[MemberId, BaseException]] = []
        """Workers that failed to start and were not judged yet."""

    # How many ----------------------------------------------------------------------------------------------------

    def want(self, count: int) -> None:
        """Have `count` workers, those that start included; asks for more, or takes requests back. Called a few times a
        second: whoever changes what is wanted or who is there need not think of it."""
        self._target = count
        staying = sum(h.leaving is None for h in self.hands.values())
        for _ in range(count - staying - len(self._asked) if time.monotonic() >= self._ask_from else 0):
            self._places += 1
            name = f"{self._prefix}place{self._places}"
            bundle = _bundle(self._wanted)
            self._asked.append(placement_group([bundle], strategy="PACK", name=name, lifetime="detached"))
        while self._asked and staying + len(self._asked) > count:
            remove_placement_group(self._asked.pop())

    @property
    def ready(self) -> list[Hand]:
        """Workers that can take part in a view, in the order in which they became ready."""
        return sorted((h for h in self.hands.values() if h.facts is not None), key=lambda h: h.readiness)

    @property
    def starting(self) -> int:
        """Workers that have their place and will be ready soon."""
        return len(self._starting)

    @property
    def settled(self) -> bool:
        """Whether it is of no use to wait for more workers before the first view."""
        if self._starting:
            return False
        placed = len(self.hands)
        return placed >= self._target or (
            self._enough_at is not None and time.monotonic() - self._enough_at >= SETTLE_S
        )

    @property
    def lacks_places(self) -> bool:
        """Whether the cluster has not yet given enough places for the smallest view."""
        return len(self.hands) < self._wanted.min

    def waited(self) -> float:
        """Seconds since the first request."""
        return time.monotonic() - self._begun

    def overdue(self) -> bool:
        """Whether the cluster has had `start_s` to give places and has not given enough for the smallest view."""
        return self.lacks_places and self.waited() > self._wanted.start_s

    def shortage(self) -> str:
        """What is missing, for people."""
        return too_few(len(self.hands), self._wanted) + (f". Refused: {self._refused}" if self._refused else "")

    # One worker --------------------------------------------------------------------------------------------------

    def end(self, member: MemberId) -> None:
        """End a worker at once and give its place back."""
        hand = self.hands.pop(member, None)
        starting = self._starting.pop(member, None)
        if starting is not None:
            starting.cancel()
        if hand is not None:
            if hand.stays is not None:
                hand.stays.cancel()
            ray.kill(hand.actor, no_restart=True)
            if hand.place is not None:
                remove_placement_group(hand.place)

    def end_all(self) -> None:
        """End every worker and take every request back."""
        for member in list(self.hands):
            self.end(member)
        while self._asked:
            remove_placement_group(self._asked.pop())

    async def look_for_places(self) -> None:
        """For ever: start a worker on every place that the cluster grants."""
        pause = LOOK_S[0]
        while True:
            asked = list(self._asked)
            found = await asyncio.to_thread(lambda asked: [p for p in asked if p.wait(0)], asked) if asked else []
            granted = [p for p in found if p in self._asked]  # none that was taken back meanwhile
            for place in granted:
                self._asked.remove(place)
                self._start(place)
            if self._enough_at is None and len(self.hands) >= self._wanted.min:
                self._enough_at = time.monotonic()
            pause = LOOK_S[0] if granted or not self._ready else min(2 * pause, LOOK_S[1])
            await asyncio.sleep(pause)

    def _start(self, place: PlacementGroup) -> None:
        member, self._next = f"w{self._next}", self._next + 1
        actor = (
            ray.remote(concurrency_groups={LINE: LINE_THREADS})(Worker)  # type: ignore[call-overload]
            .options(
                name=f"{self._prefix}{member}",
                namespace="shoal",
                lifetime="detached",
                **_resources(self._wanted),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_capture_child_tasks=False),
            )
            .remote(replace(self._outfit, member=member))
        )
        self.hands[member] = hand = Hand(member, actor, place)
        self._starting[member] = asyncio.ensure_future(self._bring_up(hand))

    async def _bring_up(self, hand: Hand) -> None:
        try:
            facts = await asyncio.wait_for(self._prepare(hand), self._wanted.start_s)
        except asyncio.TimeoutError:
            self._failed(hand, WorkerLost(_late(hand.member, self._wanted.start_s)))
        except (ShoalError, ray.exceptions.RayError) as error:
            self._failed(hand, _plain(hand.member, error))
        else:
            self._starting.pop(hand.member, None)
            self._is_ready(hand, facts)

    def _is_ready(self, hand: Hand, facts: WorkerFacts) -> None:
        hand.facts, hand.readiness, self._ready = facts, self._ready, self._ready + 1
        hand.since = time.time()
        hand.stays = asyncio.ensure_future(self._stays(hand))
        self._changed()

    async def _stays(self, hand: Hand) -> None:
        """Learn of a worker's death at once, wherever it is: in a view, beside one, or between two."""
        try:
            await hand.actor.stay.remote()
        except ray.exceptions.RayError as error:
            self._gone(hand.member, error)

    async def _prepare(self, hand: Hand) -> WorkerFacts:
        facts = await hand.actor.prepare.remote()
        self._admit(facts)
        if self.warm is not None:
            await self.warm(hand.actor)
        return facts

    def _admit(self, facts: WorkerFacts) -> None:
        """Raises WorkerRefused if a worker is not like the first one that was ready."""
        self._known = known = self._known or facts
        why = refusal(facts.identity, known.identity)
        if why is not None:
            self._refused = f"{facts.member} on node {facts.address}, unlike {known.member} on {known.address}: {why}"
            self._ask_from = time.monotonic() + self._hold_off_s
            self._hold_off_s = min(2 * self._hold_off_s, REFUSED_S[1])
            raise WorkerRefused(self._refused)

    def _failed(self, hand: Hand, error: BaseException) -> None:
        self.failures.append((hand.member, error))
        self._starting.pop(hand.member, None)
        self.end(hand.member)
        self._changed()

    # After a restart of the coordinator ----------------------------------------------------------------------------

    async def adopt(self) -> dict[MemberId, Standing]:
        """Take over the workers that an earlier life of the coordinator started: what each says of its standing.

        One that was still starting is ended: nobody waits for it.
        """
        standings: dict[MemberId, Standing] = {}
        for name in sorted(_named(self._prefix)):
            member = name[len(self._prefix) :]
            self._next = max(self._next, int(member[1:]) + 1)
            actor = ray.get_actor(name, "shoal")
            standing: Standing | None = None
            with suppress(asyncio.TimeoutError, ray.exceptions.RayError):
                standing = await asyncio.wait_for(actor.standing.remote(), SETTLE_S)
            self.hands[member] = hand = Hand(member, actor, standing.place if standing is not None else None)
            if standing is None or standing.facts is None:
                self.end(member)
                continue
            self._known = self._known or standing.facts
            self._is_ready(hand, standing.facts)
            standings[member] = standing
        self._drop_places(frozenset(h.place.id.hex() for h in self.hands.values() if h.place is not None))
        return standings

    def _drop_places(self, kept: frozenset[str]) -> None:
        """Give back what an earlier life asked for and nobody uses."""
        for number, place in placement_group_table().items():
            name = place["name"]
            if not name.startswith(f"{self._prefix}place"):
                continue
            self._places = max(self._places, int(name[len(self._prefix) + len("place") :]))
            if number not in kept and place["state"] != "REMOVED":
                remove_placement_group(get_placement_group(name))


def _named(prefix: str) -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [a["name"] for a in found if a["namespace"] == "shoal" and a["name"].startswith(prefix)]


def _plain(member: MemberId, error: BaseException) -> BaseException:
    if isinstance(error, RayTaskError) and isinstance(error.cause, ShoalError):
        return error.cause
    if isinstance(error, RayActorError):
        return WorkerLost(f"worker {member} died while it started: {str(error).splitlines()[0]}")
    return error


def _late(member: MemberId, start_s: float) -> str:
    return (
        f"worker {member} did not start within workers.start_s={start_s:g}s; importing torch or building the model "
        f"takes longer, or the node is overloaded; raise workers.start_s"
    )


def _bundle(want: Workers) -> dict[str, float]:
    bundle = {"CPU": want.cpus, "GPU": want.gpus, **dict(want.resources)}
    return {name: amount for name, amount in bundle.items() if amount}


def _resources(want: Workers) -> dict[str, Any]:
    return {"num_cpus": want.cpus, "num_gpus": want.gpus, "resources": dict(want.resources) or None}


def too_few(found: int, want: Workers) -> str:
    """Why the smallest view cannot be had, with what the cluster has."""
    bundle: Mapping[str, float] = _bundle(want)
    total = ray.cluster_resources()
    has = ", ".join(f"{name}: {total.get(name, 0):g}" for name in bundle)
    return (
        f"only {found} of at least workers.min={want.min} workers found a place. Each needs {dict(bundle)}; the whole "
        f"cluster has {has}, part of it kept for reading data. Lower workers.min or workers.cpus, add nodes, or, if an "
        f"autoscaler is still adding some, raise workers.start_s={want.start_s:g}"
    )
