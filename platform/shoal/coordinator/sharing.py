"""How many workers a run has of its cluster: what it asks for, what it gives back, how it gives way to other runs.

`capacity.appetite` and `capacity.precedence` decide; this file acts. Runs find each other by the names of their
coordinators. Who lacks places looks at the claims of all and asks those that are to give way, again and again for as
long as it lacks them: a word that is lost costs time, a run that is gone asks no more, and one that does not answer
is left alone.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

import ray

from shoal.capacity.appetite import Appetite, Table
from shoal.capacity.asks import Asks
from shoal.capacity.precedence import Claim, Holding, Lack, Way, precedence
from shoal.coordinator.feeding import Feeding
from shoal.coordinator.scene import Scene
from shoal.membership.phases import Phase
from shoal.pool.division import useful_sizes
from shoal.worker.places import named_actors, need_of, nodes

PATIENCE_S = 3.0
"""A place that the cluster has not granted for so long is one that is lacking: others may have it."""
ROUND_S = 2.0
"""Between two looks at the claims of all."""
ANSWER_S = 2.0
OTHERS = re.compile(r"-[0-9a-f]{12,}-w\d+$|-feed$|^shoal-pool-")
"""Names that begin like a coordinator's and are none."""


class Sharing:
    """One run's part of the cluster."""

    def __init__(self, scene: Scene, feeding: Feeding) -> None:
        self._scene, self._feeding = scene, feeding
        self._appetite = Appetite(scene.plan.job.workers.idle_s)
        self._asks = Asks()
        self._before: dict[str, Way] = {}
        self._said = ""

    @property
    def from_cluster(self) -> bool:
        """Whether its workers are its own; those of a pool are divided by the pool."""
        return self._scene.plan.pool is None

    # How many --------------------------------------------------------------------------------------------------------

    def tend(self, now: float) -> None:
        """Ask for workers, give back what idles, let those leave whose places others need."""
        scene = self._scene
        if not self.from_cluster:
            scene.crew.want(scene.high)
            return
        self._give_way(now)
        order = self._appetite.decide(self._table(now))
        if order.give_back:
            scene.book.say("info", f"{order.give_back} idle workers are given back: {order.reason}")
            for hand in self._idle()[-order.give_back :]:
                scene.crew.end(hand.member)
        scene.crew.want(min(order.want, scene.crew.staying) if self._asks.live(now) else order.want)

    def _table(self, now: float) -> Table:
        scene, running = self._scene, self._scene.running
        left = scene.course.expected - scene.account.committed if scene.course.expected else None
        return Table(
            low=scene.low,
            high=scene.high,
            sizes=useful_sizes(scene.low, scene.high, scene.plan.job.batch.virtual_shards),
            have=scene.crew.staying,
            idle=len(self._idle()),
            now=now,
            left_s=left * running.step_s if left is not None and running is not None and running.step_s else None,
            coming_s=scene.crew.coming_s,
            resize_cost_s=scene.resize_cost_s,
        )

    def _idle(self) -> list[Any]:
        """Workers that wait beside a view which goes on, the newest last."""
        scene, running = self._scene, self._scene.running
        if running is None or scene.phase is not Phase.RUNNING or running.leasing.end is not None:
            return []
        return [h for h in scene.crew.ready if h.leaving is None and h.member not in running.view.members]

    # Among others ----------------------------------------------------------------------------------------------------

    def claim(self) -> Claim | None:
        """What this run says to others; None: it has no part in the division."""
        scene = self._scene
        if not self.from_cluster or scene.phase is Phase.DONE:
            return None
        plan, want = scene.plan, scene.plan.job.workers
        hands = sorted(scene.crew.hands.values(), key=lambda h: h.begun)
        return Claim(
            run=plan.run_id,
            priority=want.priority,
            since=int(plan.launch, 16) / 1e9,
            begun=bool(scene.formed),
            least=scene.low,
            need=need_of(want),
            holds=tuple(Holding(h.member, h.node, h.leaving is not None) for h in hands if h.node),
            lacks=self._lacks(),
        )

    def _lacks(self) -> tuple[Lack, ...]:
        scene, plan = self._scene, self._scene.plan
        reading = self._feeding.lacking(PATIENCE_S)
        if reading is not None:  # workers are asked for when it is there, and then are needed as much
            return Lack(*reading, vital=True), Lack(need_of(plan.job.workers), scene.low, vital=True)
        have, unmet = scene.crew.staying, scene.crew.unmet(PATIENCE_S)
        of_use = max(size for size in (have, *useful_sizes(scene.low, scene.high, plan.job.batch.virtual_shards))
                     if size <= max(have + unmet, scene.low))  # fmt: skip
        vital = min(unmet, max(0, scene.low - have))
        need = need_of(plan.job.workers)
        lacks = (Lack(need, vital, vital=True), Lack(need, min(unmet, of_use - have) - vital, vital=False))
        return tuple(lack for lack in lacks if lack.count > 0)

    async def look_around(self) -> None:
        """For ever: while this run lacks places, ask others to give way."""
        while True:
            await asyncio.sleep(ROUND_S)
            own = self.claim()
            if own is None or not own.lacks:
                self._before = {}
                continue
            others = await self._others()
            claims = {own.run: own, **{claim.run: claim for claim, _ in others}}
            ways = precedence(await asyncio.to_thread(nodes), claims.values())
            for claim, actor in others:
                way, before = ways.get(claim.run), self._before.get(claim.run)
                if way is None or before is None:
                    continue
                # Twice in a row: what has just become free may not be seen yet.
                sure = Way(tuple(w for w in way.workers if w in before.workers), way.run)
                actor.give_way.remote(claim.run, own, sure)
            self._before = {run: way for run, way in ways.items() if run != own.run}

    async def _others(self) -> list[tuple[Claim, Any]]:
        """The other runs of this cluster that answer, with their coordinators."""
        actors = await asyncio.to_thread(_coordinators, self._scene.plan.coordinator)
        answers = await asyncio.gather(
            *(asyncio.wait_for(actor.claim.remote(), ANSWER_S) for actor in actors), return_exceptions=True
        )
        return [(a, actor) for a, actor in zip(answers, actors, strict=True) if isinstance(a, Claim)]

    def asked(self, asker: Claim, way: Way) -> None:
        """Another run asks this one to give way."""
        own = self.claim()
        if own is not None:
            self._asks.hear(own, asker, way, time.monotonic())

    def _give_way(self, now: float) -> None:
        """Those leave whose places others need; who was to leave and is still here stays if nobody asks any more."""
        scene, own = self._scene, self.claim()
        found = self._asks.going(own, now) if own is not None else {}
        going = {worker: _why(asker, scene.plan.job.workers.priority) for worker, asker in found.items()}
        self._tell(going)
        for hand in list(scene.crew.hands.values()):
            if hand.member in going and hand.leaving is None:
                hand.leaving = hand.gives_way = going[hand.member]
                members = scene.running.view.members if scene.running is not None else ()
                if not scene.formed or (members and hand.member not in members):
                    scene.crew.end(hand.member)  # it takes part in nothing that it could leave
            elif not self._asks.live(now) and hand.gives_way is not None and hand.leaving == hand.gives_way:
                hand.leaving = hand.gives_way = None

    def _tell(self, going: Mapping[str, str]) -> None:
        said = "; ".join(f"worker {worker} will leave: {why}" for worker, why in going.items())
        if said and said != self._said:
            self._scene.book.say("info", said)
        self._said = said


def _why(asker: Claim, ours: int) -> str:
    return f"its place is for run {asker.run} (workers.priority {asker.priority}, this run has {ours})"


def _coordinators(own: str) -> list[Any]:
    """The coordinators of other runs."""
    found = []
    for name in named_actors("shoal-"):
        if name == own or OTHERS.search(name):
            continue
        try:
            actor = ray.get_actor(name, "shoal")
        except ValueError:
            continue  # it is gone
        if hasattr(actor, "claim"):
            found.append(actor)
    return found
