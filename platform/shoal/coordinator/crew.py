"""The workers of a run: wanted from a supply, dressed and warmed up side by side, given back one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from shoal.coordinator.sight import out_of_sight, some_of
from shoal.coordinator.supply import Recruit, Supply
from shoal.errors import ShoalError, StaleProcess, WorkerLost, WorkerRefused
from shoal.job import Workers
from shoal.membership.admission import refusal
from shoal.membership.view import MemberId
from shoal.worker.outfit import Outfit, Standing, WorkerFacts

SETTLE_S = 3.0
"""Once `min` workers have their place, how long to wait for the rest of `max` before starting without them."""
REFUSED_S = (5.0, 300.0)
"""After a worker was refused, until more are asked for, doubling: the next one may come from the same node."""
RECALLED = "lent to another run"


@dataclass(slots=True)
class Hand:
    """One worker at hand."""

    member: MemberId
    recruit: Recruit
    facts: WorkerFacts | None = None
    """None until it is ready."""
    readiness: int = 0
    """How many were ready before it."""
    leaving: str | None = None
    """Why it is to leave at the next boundary."""
    reclaimed: bool = False
    """Its node, or its process alone, is being taken back."""
    goes_at: float = 0.0
    """When, on the clock of `time.monotonic`; 0: nobody said."""
    since: float = field(default_factory=time.time)
    """Unix seconds: when it was started, or became ready."""
    begun: float = field(default_factory=time.time)
    """Unix seconds: when it was started."""
    stays: asyncio.Task[None] | None = None
    gives_way: str | None = None
    """Why it is to leave, if that is for another run, which may need its place no more before it has gone."""

    @property
    def node(self) -> str:
        """Its node; "": not known before it is ready."""
        return self.facts.node if self.facts is not None else ""

    @property
    def actor(self) -> Any:
        """Its handle."""
        return self.recruit.actor

    @property
    def stays_s(self) -> float:
        """Seconds for which it could still stay if it is to leave."""
        return max(0.0, self.goes_at - time.monotonic())


class Crew:
    """All workers of a run."""

    def __init__(
        self,
        supply: Supply,
        wanted: Workers,
        outfit: Outfit,
        changed: Callable[[], None],
        gone: Callable[[MemberId, BaseException], None],
    ) -> None:
        """`changed` is called when a worker became ready or failed to start, `gone` when one that was ready died."""
        self._supply, self._wanted, self._outfit, self._changed, self._gone = supply, wanted, outfit, changed, gone
        self._next = self._wants = 0
        self._starting: dict[MemberId, asyncio.Task[None]] = {}
        self._begun = time.monotonic()
        self._enough_at: float | None = None
        self._ready = 0
        self.coming_s = 0.0
        """How long the last newcomer took, from being asked for until it was ready."""
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
        """Have `count` workers, those that start included, or as many as the supply allots. Called a few times a
        second: whoever changes what is wanted or who is there need not think of it."""
        self._wants = count
        if self._supply.allotted is not None:
            self._recall(self._supply.allotted)
        have = self.staying
        may_ask = time.monotonic() >= self._ask_from
        self._supply.want(count if may_ask else min(count, have + self._supply.asked), have)

    def _recall(self, allotted: int) -> None:
        """The newest beyond what is allotted are to leave. A worker that is only starting goes at once."""
        staying = [h for h in self.hands.values() if h.leaving in (None, RECALLED)]
        first_to_go = sorted(staying, key=lambda h: (h.facts is not None, -h.readiness))
        surplus = len(staying) - allotted
        for i, hand in enumerate(first_to_go):
            if i < surplus and hand.facts is None:
                self.end(hand.member)
            else:
                hand.leaving = RECALLED if i < surplus else None

    @property
    def staying(self) -> int:
        """Workers that have a place and are not to leave."""
        return sum(h.leaving is None for h in self.hands.values())

    def unmet(self, seconds: float) -> int:
        """How many the cluster has been asked for so long ago in vain."""
        return self._supply.unmet(seconds)

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
        allotted = self._supply.allotted
        target = self._wants if allotted is None else min(self._wants, allotted)
        return len(self.hands) >= target or (
            self._enough_at is not None and time.monotonic() - self._enough_at >= SETTLE_S
        )

    @property
    def lost(self) -> str | None:
        """Why there will be no workers any more; None: there may be."""
        return self._supply.lost

    @property
    def lacks_places(self) -> bool:
        """Whether the supply has not yet given enough workers for the smallest view."""
        return len(self.hands) < self._wanted.min

    def waited(self) -> float:
        """Seconds since the first request."""
        return time.monotonic() - self._begun

    def overdue(self) -> bool:
        """Whether the supply has had `start_s` and has not given enough for the smallest view."""
        return self.lacks_places and self.waited() > self._wanted.start_s

    def shortage(self) -> str:
        """What is missing, for people."""
        return self._supply.shortage(len(self.hands)) + (f". Refused: {self._refused}" if self._refused else "")

    # One worker --------------------------------------------------------------------------------------------------

    def end(self, member: MemberId, *, fit: bool = True) -> None:
        """The run does not need this worker any more. `fit`: nothing is known against using it again."""
        hand = self.hands.pop(member, None)
        starting = self._starting.pop(member, None)
        if starting is not None:
            starting.cancel()
        if hand is not None:
            if hand.stays is not None:
                hand.stays.cancel()
            self._supply.take_back(hand.recruit, fit=fit and not hand.reclaimed)

    def end_all(self) -> None:
        """End every worker and take every request back."""
        for member in list(self.hands):
            self.end(member)
        self._supply.close()

    async def take_in(self) -> None:
        """For ever: prepare every worker that the supply gives."""
        while True:
            for recruit in await self._supply.recruits():
                member, self._next = f"w{self._next}", self._next + 1
                self.hands[member] = hand = Hand(member, recruit)
                self._starting[member] = asyncio.ensure_future(self._bring_up(hand))
            if self._enough_at is None and not self.lacks_places:
                self._enough_at = time.monotonic()

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
        self.coming_s = hand.recruit.waited_s + hand.since - hand.begun
        hand.stays = asyncio.ensure_future(self._stays(hand))
        self._changed()

    async def _stays(self, hand: Hand) -> None:
        """Learn of a worker's death at once, wherever it is: in a view, beside one, or between two."""
        try:
            await hand.actor.stay.remote(self._outfit.run)
        except ray.exceptions.RayError as error:
            self._gone(hand.member, error)
        else:  # nobody told it to: whoever lent it has taken it back
            self._gone(hand.member, WorkerLost(f"worker {hand.member} was taken back by the pool"))

    async def _prepare(self, hand: Hand) -> WorkerFacts:
        facts = await hand.actor.prepare.remote(replace(self._outfit, member=hand.member))
        self._admit(facts)
        await self._see_others(hand, facts)
        if self.warm is not None:
            await self.warm(hand.actor)
        return facts

    def _admit(self, facts: WorkerFacts) -> None:
        """Raises WorkerRefused if a worker is not like the first one that was ready."""
        self._known = known = self._known or facts
        why = refusal(facts.identity, known.identity)
        if why is not None:
            self._refuse(f"{facts.member} on node {facts.address}, unlike {known.member} on {known.address}: {why}")

    async def _see_others(self, hand: Hand, facts: WorkerFacts) -> None:
        """Raises WorkerRefused if a worker does not reach those that are ready: a view with it could not be formed."""
        others = {h.facts.member: h.facts for h in self.ready if h.facts is not None}
        unseen = await out_of_sight(self._outfit.run, hand.actor, some_of(list(others.values())))
        if unseen:
            said = ", ".join(f"{m} ({others[m].rendezvous})" for m in unseen)
            self._refuse(f"{facts.member} on node {facts.address} does not reach {said}")

    def _refuse(self, why: str) -> None:
        self._refused = why
        self._ask_from = time.monotonic() + self._hold_off_s
        self._hold_off_s = min(2 * self._hold_off_s, REFUSED_S[1])
        raise WorkerRefused(why)

    def _failed(self, hand: Hand, error: BaseException) -> None:
        if not isinstance(error, StaleProcess):  # its place will have a new process; that is nobody's failure
            self.failures.append((hand.member, error))
        self._starting.pop(hand.member, None)
        self.end(hand.member, fit=False)
        self._changed()

    # After a restart of the coordinator ----------------------------------------------------------------------------

    async def adopt(self) -> dict[MemberId, Standing]:
        """Take over the workers that an earlier life of the coordinator was given: what each says of its standing.

        One that was still starting is ended: nobody waits for it.
        """
        standings: dict[MemberId, Standing] = {}
        for recruit in await self._supply.find():
            standing: Standing | None = None
            with suppress(asyncio.TimeoutError, ray.exceptions.RayError):
                standing = await asyncio.wait_for(recruit.actor.standing.remote(), SETTLE_S)
            if standing is None or standing.facts is None or standing.run != self._outfit.run:
                self._supply.take_back(recruit, fit=False)
                continue
            member = standing.member
            self._next = max(self._next, int(member[1:]) + 1)
            self.hands[member] = hand = Hand(member, replace(recruit, place=standing.place))
            self._known = self._known or standing.facts
            self._is_ready(hand, standing.facts)
            standings[member] = standing
        self._supply.keep([h.recruit for h in self.hands.values()])
        return standings


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
