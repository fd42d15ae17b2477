"""The coordinator: the one actor that decides. It admits, leases steps, records commits, and never touches a tensor.

It hosts one run (`coordinator.run`). Where a pool keeps it, it hosts one after another: its process, what that has
imported, and its feed's process stay warm in between. Everyone says which run is meant, because it may be over.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import ray

from shoal.capacity.precedence import Claim, Way
from shoal.coordinator.concluding import Ended
from shoal.coordinator.plan import RunPlan
from shoal.coordinator.run import Run
from shoal.coordinator.shell import Shell
from shoal.coordinator.status import MemberStatus, RunStatus
from shoal.errors import RunOver
from shoal.membership.messages import Grant, Reports
from shoal.membership.view import MemberId
from shoal.ray_compat import yield_to_training


class Coordinator:
    """Hosts a run."""

    def __init__(self, plan: RunPlan | None, shell: Shell | None = None) -> None:
        """`plan`: the run that it lives for; None: the pool of `shell` gives it one after another."""
        yield_to_training()
        revived = ray.get_runtime_context().was_current_actor_reconstructed
        self._shell = shell
        self._run: Run | None = None
        if shell is not None:
            shell.watch(lambda: self._run is not None and not self._run.is_over)
            plan = shell.recall() if revived else None
        if plan is not None:
            self._run = Run(plan, None, self._let_go, revived=revived)

    # Where a pool keeps it -----------------------------------------------------------------------------------------

    async def warm(self) -> None:
        """Do what only the first run in a process has to wait for."""
        if self._shell is not None:
            await self._shell.warm()

    async def begin(self, plan: bytes) -> None:
        """Host this run from now on (a pickled RunPlan). Raises StaleProcess if only a new process will do."""
        assert self._shell is not None, "without a pool there is one run, from the beginning"
        assert self._run is None, f"{self._run.plan.run_id if self._run else ''} is not over"
        self._run = Run(self._shell.load(plan), self._shell.take_feed(), self._let_go, revived=False)
        self._run.begin()

    async def dismiss(self, run_id: str) -> None:
        """The outcome of `run_id` is known to who wanted it."""
        if self._serving(run_id).is_over:
            self._let_go()

    def _let_go(self) -> None:
        run, self._run = self._run, None
        if self._shell is None:
            ray.kill(ray.get_runtime_context().current_actor)
        elif run is not None:
            self._shell.rest(run.close())

    def _serving(self, run_id: str | None = None) -> Run:
        run = self._run
        if run is None or run_id not in (None, run.plan.run_id):
            raise RunOver(f"run {run_id} is over" if run_id is not None else "the run is over")
        return run

    # What the launcher and people call -----------------------------------------------------------------------------

    async def ask(self, run_id: str, what: str, *arguments: Any) -> Any:
        """The method `what` of this class, if it is `run_id` that it hosts; else raises RunOver."""
        self._serving(run_id)
        return await getattr(self, what)(*arguments)

    async def stay(self) -> None:
        """Never returns: whoever waits for it learns at once when this process is gone."""
        await asyncio.Event().wait()

    async def run(self) -> None:
        """Begin. Does nothing if the run has begun."""
        self._serving().begin()

    async def outcome(self) -> Ended:
        """Wait for the end of the run. Raises ShoalError for what is wrong before it began."""
        return await self._serving().outcome()

    async def stop(self, reason: str, save: bool = True) -> None:
        """End cleanly at the next boundary: true status, and a checkpoint unless `save` is false."""
        await self._serving().stop(reason, save)

    async def status(self, after: int | None) -> tuple[RunStatus, list[tuple[str, str]]]:
        """Where the run stands, and the news from number `after` on (None: an onlooker, who wants none)."""
        return await self._serving().status(after)

    async def members(self) -> tuple[MemberStatus, ...]:
        """All workers: members in rank order, then the others."""
        return await self._serving().members()

    async def scale(self, low: int, high: int) -> str:
        """Have between `low` and `high` workers from now on; says what will happen. Raises ConfigError."""
        return await self._serving().scale(low, high)

    async def end_worker(self, member: str, how: Literal["kill", "leave"]) -> str:
        """End one worker, at once or at the next boundary; says what will happen. Raises ConfigError."""
        return await self._serving().end_worker(member, how)

    # What other runs of the cluster call -----------------------------------------------------------------------------

    async def claim(self) -> Claim | None:
        """What the run says to the others of its cluster; None: it has no part in the division."""
        return self._run.sharing.claim() if self._run is not None else None

    async def give_way(self, run_id: str, asker: Claim, way: Way) -> None:
        """Another run, `asker`, lacks places: this one asks for no more for some seconds, and workers leave for it."""
        self._serving(run_id).sharing.asked(asker, way)

    # What the members call -----------------------------------------------------------------------------------------

    async def sync(self, run: str, reports: Reports) -> Grant:
        """Hear a member's reports, answer with its further leases. `run`: the launch (`RunPlan.key`) that it serves."""
        return await self._of_launch(run).sync(reports)

    async def keeper(self, run: str, member: MemberId) -> Any:
        """The actor of a worker, for one that brings it a copy. Raises WorkerLost if it is gone."""
        return self._of_launch(run).actor_of(member)

    def _of_launch(self, run: str) -> Run:
        serving = self._serving()
        if serving.plan.key != run:
            raise RunOver(f"{run} is over")
        return serving
