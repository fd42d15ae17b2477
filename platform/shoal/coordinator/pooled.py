"""Workers from a pool: the coordinator's line to it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray

from shoal.coordinator.plan import RunPlan
from shoal.coordinator.supply import Recruit
from shoal.pool.division import useful_sizes
from shoal.pool.spec import NAMESPACE, Answer, Ask, pool_name
from shoal.worker.outfit import Kind

ANSWER_S = 60.0
"""A pool that does not answer for so long is given up."""
RETRY_S = 0.5


class PoolSupply:
    """Takes what the pool lends, and gives back what it recalls."""

    def __init__(self, pool: str, plan: RunPlan, changed: Callable[[], None]) -> None:
        """`changed` is called when the pool allots another number, or is gone."""
        self._name, self._plan, self._changed = pool, plan, changed
        self._kind = Kind.of(plan.job)
        self._line_id = uuid.uuid4().hex
        self._sizes: tuple[int, ...] = ()
        self._holds: dict[str, Recruit] = {}
        self._unfit: set[str] = set()
        self._new: asyncio.Queue[Recruit] = asyncio.Queue()
        self._answer: Answer | None = None
        self._line: asyncio.Task[None] | None = None
        self._urgent = asyncio.Event()
        self._pool: Any = None
        self.lost: str | None = None

    @property
    def allotted(self) -> int | None:
        """As the pool said last; 0 before it has said anything."""
        return self._answer.allotted if self._answer is not None else len(self._holds)

    @property
    def asked(self) -> int:
        """What is allotted and not yet lent."""
        return max(0, (self.allotted or 0) - len(self._holds))

    def want(self, count: int, have: int) -> None:
        """Tell the pool how many are of use."""
        low = min(self._plan.job.workers.min, count)
        sizes = useful_sizes(low, count, self._plan.job.batch.virtual_shards)
        if sizes != self._sizes:
            self._sizes = sizes
            self._urgent.set()
        if self._line is None and self.lost is None:
            self._line = asyncio.ensure_future(self._keep_up())

    async def recruits(self) -> list[Recruit]:
        """What the pool lends anew."""
        found = [await self._new.get()]
        while not self._new.empty():
            found.append(self._new.get_nowait())
        return [r for r in found if r.id in self._holds]

    def take_back(self, recruit: Recruit, *, fit: bool) -> None:
        """The pool hears it at once, with what the run still holds."""
        self._holds.pop(recruit.id, None)
        if not fit:
            self._unfit.add(recruit.id)
        self._urgent.set()

    def close(self) -> None:
        """Withdraw the claim: all that is lent comes back."""
        if self._line is not None:
            self._line.cancel()
        if self._pool is not None:
            self._pool.leave.remote(self._plan.key, self._line_id, frozenset(self._unfit))

    async def find(self) -> list[Recruit]:
        """What the pool has lent to this launch of the run."""
        with suppress(ValueError, asyncio.TimeoutError, ray.exceptions.RayError):
            self._answer = await asyncio.wait_for(self._reach().last_answer.remote(self._plan.key), ANSWER_S)
            lent = self._answer.lent if self._answer is not None else ()
            self._holds = {x.id: Recruit(x.id, x.actor) for x in lent}
        return list(self._holds.values())

    def keep(self, recruits: Sequence[Recruit]) -> None:
        """What was not kept was given back by `take_back`."""

    def shortage(self, found: int) -> str:
        """What the pool said."""
        said = f" ({self._answer.reason})" if self._answer is not None else ""
        want = self._plan.job.workers
        return (
            f"the pool {self._name!r} has lent {found} of at least workers.min={want.min} workers{said}. Wait for "
            f"other runs to end, lower workers.min, or open a larger pool"
        )

    def ask(self, unfit: frozenset[str]) -> Ask:
        """What it says to the pool."""
        heard = self._answer.number if self._answer is not None else 0
        plan = self._plan
        who = (plan.key, plan.run_id, self._line_id, plan.coordinator)
        return Ask(*who, self._sizes, self._kind, frozenset(self._holds), unfit, heard)

    def unmet(self, seconds: float) -> int:
        """None: the pool asks the cluster, for all of its runs."""
        return 0

    async def _keep_up(self) -> None:
        """For ever: say what is wanted and held, hear what is allotted and lent."""
        while self.lost is None:
            self._urgent.clear()
            unfit = frozenset(self._unfit)
            try:
                answer = await self._exchange(unfit)
            except (ray.exceptions.ActorUnavailableError, asyncio.TimeoutError):
                await asyncio.sleep(RETRY_S)
            except (ValueError, ray.exceptions.RayActorError):
                self.lost = (
                    f"the pool {self._name!r} is gone, and its workers with it; go on in another pool or without one: "
                    f"shoal resume {self._plan.run_id}"
                )
                self._changed()
            else:
                if answer is not None:
                    self._unfit -= unfit
                    self._take(answer)

    async def _exchange(self, unfit: frozenset[str]) -> Answer | None:
        """One exchange; None if something more urgent is to be said meanwhile."""
        sync = self._reach().sync.remote(self.ask(unfit))
        answer = asyncio.ensure_future(asyncio.wait_for(sync, ANSWER_S))
        urgent = asyncio.ensure_future(self._urgent.wait())
        try:
            await asyncio.wait({answer, urgent}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()
            urgent.cancel()

    def _take(self, answer: Answer) -> None:
        before = self._answer
        self._answer = answer
        if before is None or answer.number > before.number:
            for lent in answer.lent:
                if lent.id not in self._holds and lent.id not in self._known(before):
                    self._holds[lent.id] = recruit = Recruit(lent.id, lent.actor)
                    self._new.put_nowait(recruit)
        if before is None or before.allotted != answer.allotted:
            self._changed()

    @staticmethod
    def _known(answer: Answer | None) -> frozenset[str]:
        return frozenset(x.id for x in answer.lent) if answer is not None else frozenset()

    def _reach(self) -> Any:
        if self._pool is None:
            self._pool = ray.get_actor(pool_name(self._name), NAMESPACE)
        return self._pool
