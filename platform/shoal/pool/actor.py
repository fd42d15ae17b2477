"""The pool: an actor that owns warm workers and lends them to runs.

What it is told and what it tells is always the whole picture: a run says again and again what it can use and what it
has, and hears what it may have and what is lent to it. A word that is lost costs nothing but time.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from collections import Counter
from contextlib import suppress

import ray

from shoal.pool.berths import Berths
from shoal.pool.division import Claim, Share, divide, next_to_get, provide
from shoal.pool.shells import Shells
from shoal.pool.spec import NAMESPACE, Answer, Ask, Claimant, Lent, PoolSpec, PoolStatus, RunInPool, WorkerInPool
from shoal.pool.spec import pool_name as name_of
from shoal.ray_compat import yield_to_training
from shoal.worker.outfit import Kind

BEAT_S = 2.0
"""Longest time for which an answer is kept back because it would say nothing new."""
MIND_S = 1.0
STUCK_S = 3.0
"""A place that the cluster has not granted for so long is not counted upon."""
QUIET_S = 10.0
"""A run that was not heard for so long: is its coordinator still there?"""
SILENT_S = 300.0
"""A run that was not heard for so long has lost its workers, even if its coordinator seems to be there."""
NOT_HEARD = Answer(0, 0, "has left the pool", ())


class Pool:
    """Owns the workers, divides them by `pool.division`, and carries that out."""

    def __init__(self, spec: PoolSpec) -> None:
        self._spec = spec
        self._warm = {spec.kind: spec.workers if spec.warm is None else spec.warm}
        self._claimants: dict[str, Claimant] = {}
        self._weights: dict[str, float] = {}
        self._arrivals = 0
        self._left: dict[str, float] = {}
        """Lines that are not heard any more, and since when."""
        self._news: dict[str, asyncio.Event] = {}
        self._shares: dict[str, Share] = {}
        name = name_of(spec.name)
        self._berths = Berths(f"{name}/", spec, name, self._next_kind, self._settle)
        node = ray.get_runtime_context().get_node_id()
        self._shells = Shells(f"{name}/", name, node, spec.runs, self._is_over)
        self._background: list[asyncio.Task[None]] = []
        yield_to_training()

    async def open(self) -> PoolSpec:
        """Begin to start workers, if that is not done; returns what the pool is."""
        if not self._background:
            self._background = [asyncio.ensure_future(c) for c in (self._berths.take_in(), self._mind())]
            for task in self._background:
                task.add_done_callback(_must_go_on)
            self._settle()
            self._shells.keep_warm()
        return self._spec

    # What runs say ---------------------------------------------------------------------------------------------------

    async def sync(self, ask: Ask) -> Answer:
        """Hear a run; answer as soon as there is something new, or after BEAT_S."""
        if ask.line in self._left:  # calls of one caller may overtake each other
            await asyncio.sleep(BEAT_S)
            return NOT_HEARD
        claimant = self._hear(ask)
        self._settle()
        news = self._news[ask.run]
        if claimant.answer.number == ask.heard:
            news.clear()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(news.wait(), BEAT_S)
        return claimant.answer

    async def last_answer(self, run: str) -> Answer | None:
        """For a coordinator that was restarted; None: the run has no claim."""
        claimant = self._claimants.get(run)
        return claimant.answer if claimant is not None else None

    async def leave(self, run: str, line: str, unfit: frozenset[str]) -> None:
        """The run is over: all that it has comes back, and that line is not heard any more."""
        self._left[line] = time.monotonic()
        self._forget(run, unfit)
        self._settle()

    def _hear(self, ask: Ask) -> Claimant:
        claim = Claim(ask.run, ask.sizes, weight=self._weights.get(ask.run_id, 1.0))
        known = self._claimants.get(ask.run)
        if known is None:
            self._arrivals += 1
            known = self._claimants[ask.run] = Claimant(ask, claim, self._arrivals, time.monotonic())
            self._news[ask.run] = asyncio.Event()
        elif known.ask.line != ask.line:  # its coordinator was started again
            self._left[known.ask.line] = time.monotonic()
        known.hear(ask, claim, time.monotonic())
        for berth in self._berths.of(ask.run):
            if berth.told_in <= ask.heard and berth.lending not in ask.holds:
                self._berths.take_back(berth, fit=berth.lending not in ask.unfit)
        return known

    def _forget(self, run: str, unfit: frozenset[str] = frozenset()) -> None:
        if self._claimants.pop(run, None) is not None:
            self._news.pop(run).set()
        for berth in self._berths.of(run):
            self._berths.take_back(berth, fit=berth.lending not in unfit)

    # Coordinators ----------------------------------------------------------------------------------------------------

    async def begin_run(self, run_id: str, node_id: str, plan: bytes) -> str | None:
        """Let a warm coordinator begin the run of a pickled plan; returns its actor's name. None: there is none on the
        node of the run's folder."""
        return await self._shells.begin(run_id, node_id, plan)

    async def plan_of(self, shell: str) -> bytes | None:
        """For a coordinator that was restarted: the plan of the run that it hosted."""
        return self._shells.plan_of(shell)

    async def host_of(self, run_id: str) -> str | None:
        """Name of the actor of the coordinator that hosts the run."""
        return self._shells.host_of(run_id)

    async def shell_rests(self, shell: str) -> None:
        """A coordinator has left its run."""
        self._shells.rests(shell)
        self._shells.keep_warm()

    def _is_over(self, run_id: str) -> None:
        for run in [c.ask.run for c in self._claimants.values() if c.ask.run_id == run_id]:
            self._forget(run)
        self._settle()

    # What people say -------------------------------------------------------------------------------------------------

    async def weigh(self, run_id: str, weight: float) -> None:
        """From now on the run deserves that much, in proportion to others, of what is free. Others have 1."""
        self._weights[run_id] = weight
        for claimant in self._claimants.values():
            if claimant.ask.run_id == run_id:
                claimant.hear(claimant.ask, Claim(claimant.ask.run, claimant.ask.sizes, weight=weight), claimant.at)
        self._settle()

    async def warm(self, count: int, kind: Kind) -> None:
        """From now on have `count` processes of that kind warm. Those of another kind that are at rest make way."""
        self._warm = {kind: count}
        others = [b for b in self._berths.free() if b.kind != kind]
        room = self._spec.workers - len(self._berths.all)
        for berth in others[: max(0, count - self._berths.kinds()[kind] - room)]:
            self._berths.discard(berth)
        self._settle()

    async def status(self) -> PoolStatus:
        """Who has what."""
        ids = {c.ask.run: c.ask.run_id for c in self._claimants.values()}
        workers = tuple(
            WorkerInPool(b.id, b.kind, b.state, ids.get(b.run or ""), b.lendings) for b in self._berths.all.values()
        )
        runs = tuple(
            RunInPool(c.ask.run_id, len(self._berths.of(run)), share.count, share.reason, c.claim.weight)
            for run, c in self._claimants.items()
            if (share := self._shares.get(run)) is not None
        )
        return PoolStatus(self._spec, workers, runs, self._berths.asked, self._shells.warm())

    async def close(self) -> None:
        """End all workers."""
        for task in self._background:
            task.cancel()
        self._berths.end_all()
        self._shells.end_free()

    # What it does ----------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Divide, lend what is free, have processes started, and tell everyone for whom something has changed."""
        held = {run: len(self._berths.of(run)) for run in self._claimants}
        for run, claimant in self._claimants.items():
            claimant.has(held[run])
        claims = [c.claim for c in self._claimants.values()]
        self._shares = divide(self._spec.workers - self._berths.stuck(STUCK_S), claims, held)
        for claim in next_to_get(claims, self._shares, held):
            self._lend(claim, self._shares[claim.run].count - held[claim.run])
        self._provide(claims)
        for claimant in self._claimants.values():
            self._tell(claimant)

    def _lend(self, claim: Claim, count: int) -> None:
        """Lend up to `count` of what is free and of the right kind."""
        claimant = self._claimants[claim.run]
        for berth in self._berths.free(claimant.ask.kind)[:count]:
            self._berths.lend(berth, claim.run, claimant.answer.number + 1)

    def _provide(self, claims: list[Claim]) -> None:
        """Have the processes that will be lent; the cluster may not have granted their places yet."""
        held = {c.run: len(self._berths.of(c.run)) for c in claims}
        hoped = divide(self._spec.workers, claims, held)
        lacking: Counter[Kind] = Counter()
        for claim in claims:
            lacking[self._claimants[claim.run].ask.kind] += max(0, hoped[claim.run].count - held[claim.run])
        at_rest = [b for b in self._berths.free() if b.state == "idle"]
        wanted = provide(
            most=self._spec.workers,
            warm=self._warm,
            lacking=lacking,
            there=self._berths.kinds(),
            coming=Counter(b.kind for b in self._berths.all.values() if b.state == "resting"),
            idle=Counter(b.kind for b in at_rest),
        )
        for kind, count in wanted.discard.items():
            for berth in [b for b in at_rest if b.kind == kind][:count]:
                self._berths.discard(berth)
        self._berths.have(wanted.processes)

    def _next_kind(self) -> Kind:
        """What the next process is to be made ready for: for whoever will get it."""
        claims = [c.claim for c in self._claimants.values()]
        held = {c.run: len(self._berths.of(c.run)) for c in claims}
        due = next_to_get(claims, self._shares, held) if self._shares.keys() >= held.keys() else []
        if due:
            return self._claimants[due[0].run].ask.kind
        there = self._berths.kinds()
        return next((kind for kind, count in self._warm.items() if there[kind] < count), self._spec.kind)

    def _tell(self, claimant: Claimant) -> None:
        run = claimant.ask.run
        share, last = self._shares[run], claimant.answer
        lent = tuple(Lent(b.lending, b.actor) for b in self._berths.of(run))
        if (share.count, [x.id for x in lent]) != (last.allotted, [x.id for x in last.lent]):
            claimant.answer = Answer(last.number + 1, share.count, share.reason, lent)
            self._news[run].set()

    async def _mind(self) -> None:
        """Time passes: places that are not granted, coordinators that are gone."""
        while True:
            await asyncio.sleep(MIND_S)
            now = time.monotonic()
            for run, claimant in list(self._claimants.items()):
                quiet = now - claimant.at
                if quiet > SILENT_S or (quiet > QUIET_S and not await asyncio.to_thread(_is_there, claimant)):
                    self._forget(run)
            self._left = {line: since for line, since in self._left.items() if now - since < SILENT_S}
            self._settle()
            self._shells.keep_warm()


def _must_go_on(task: asyncio.Task[None]) -> None:
    """A pool without its watch would leave runs waiting for ever; one that is gone ends them with a reason."""
    if not task.cancelled() and (error := task.exception()) is not None:
        traceback.print_exception(error)
        os._exit(1)


def _is_there(claimant: Claimant) -> bool:
    """Whether the run's coordinator lives, or is being restarted."""
    try:
        ray.get_actor(claimant.ask.coordinator, NAMESPACE)
    except ValueError:
        return False
    return True
