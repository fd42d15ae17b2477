"""Members without torch: they speak the workers' protocol to a real coordinator, hundreds of them in one process.

A dummy forms no group and computes nothing; a step takes it as long as it is told. What it says, when it says it and
what it waits for are a worker's: the reports go through `shoal.worker.courier`, twice a second and at once where others
wait. A host answers for its dummies as their actors would. The pool lends them to the run, and gives more when told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from shoal.coordinator.actor import Coordinator
from shoal.coordinator.shell import Shell
from shoal.errors import WorkerLost
from shoal.membership.leasing import EndKind, beat_s
from shoal.membership.messages import (
    Entered,
    Grant,
    Held,
    Progress,
    Reading,
    Reports,
    SnapshotKept,
    StepReport,
    ViewEnd,
    ViewOrder,
)
from shoal.membership.view import Lease
from shoal.pool.spec import Answer, Ask, Lent
from shoal.worker.courier import Courier
from shoal.worker.outfit import Links, Outfit, WorkerFacts

DIGEST = "0123456789abcdef"


class Remote:
    """One method of a dummy, as a method of an actor."""

    def __init__(self, host: Any, dummy: str, name: str) -> None:
        self._call = host, dummy, name

    def remote(self, *arguments: Any) -> Any:
        host, dummy, name = self._call
        return host.call.remote(dummy, name, *arguments)


class Handle:
    """A dummy, as the coordinator reaches it."""

    def __init__(self, host: Any, dummy: str) -> None:
        self._host, self._dummy = host, dummy

    def __getattr__(self, name: str) -> Remote:
        if name.startswith("_"):
            raise AttributeError(name)
        return Remote(self._host, self._dummy, name)


@dataclass(eq=False)
class Dummy:
    """One member."""

    host: Host
    outfit: Outfit | None = None
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    held: dict[Held, None] = field(default_factory=dict)
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    worked_at: float | None = None
    courier: Any = None
    order: ViewOrder | None = None

    # What the coordinator calls --------------------------------------------------------------------------------------

    async def prepare(self, outfit: Outfit) -> WorkerFacts:
        self.outfit = outfit
        return WorkerFacts(
            member=outfit.member, node=f"node{self.host.node_of(outfit.member)}", address="127.0.0.1",
            pid=0, device="cpu",
            rendezvous="127.0.0.1:1", model={"digest": DIGEST, "parameters": []}, identity={"dummy": "1"}, labels={},
            reading=Reading(0.0, "cpu-estimate"),
        )  # fmt: skip

    async def warm_up(self, *_: Any) -> None: ...

    async def out_of_sight(self, *_: Any) -> list[str]:
        return []

    async def reading(self, run: str) -> tuple[Reading, str | None]:
        return Reading(0.0, "cpu-estimate"), None

    async def held_now(self, run: str) -> tuple[Held, ...]:
        return tuple(self.held)

    async def stay(self, run: str) -> None:
        await self.dead.wait()
        raise WorkerLost("killed")

    async def cut_view(self, run: str, view: int) -> None:
        if self.order is not None and self.order.view.number == view:
            self.cut.set()

    async def dismiss(self) -> None:
        self.dead.set()

    async def run_view(self, run: str, order: ViewOrder, links: Links) -> ViewEnd:
        """As `Worker.run_view`. A member that is killed raises, its peers come out broken."""
        assert self.outfit is not None
        self.order, self.cut = order, asyncio.Event()
        begun = time.perf_counter()
        self.courier = courier = Courier(order.member, order.view.number, lambda reports: Grant())
        life = Life(self, order, courier, links.coordinator, run)
        idle = begun - self.worked_at if self.worked_at is not None else 0.0
        courier.entered(Entered(0.0, 0.0, idle))
        courier.reading = lambda: Reading(0.0, "cpu-estimate")
        broken = await life.live()
        self.worked_at = life.worked_at or self.worked_at
        if self.dead.is_set():
            raise WorkerLost("killed")
        return ViewEnd(
            order.member, order.view.number, life.step, broken=broken, stale=True, held=tuple(self.held),
            reports=courier.close(),
        )  # fmt: skip


@dataclass(eq=False)
class Life:
    """A dummy in one view."""

    dummy: Dummy
    order: ViewOrder
    courier: Courier
    coordinator: Any
    run: str
    step: int = 0
    worked_at: float | None = None
    _leases: list[Lease] = field(default_factory=list)
    _ended: bool = False

    async def live(self) -> str | None:
        """Until the view ends; returns why it broke."""
        dummy, host = self.dummy, self.dummy.host
        self.step = self.order.source.step
        mark, beat = time.perf_counter(), beat_s(self.order.view.size)
        self.courier.progress = lambda: Progress(self.step + 1, self.step, "compute")
        while True:
            if dummy.dead.is_set() or dummy.cut.is_set():
                return "peer lost"
            grant = await self._sync(self._word())
            self._receive(grant)
            mark = self._work(mark, host.step_s)
            if self._ended and not self._leases:
                self._snapshot(self.step)
                return None
            first = self.step < self.order.first_step
            soon = max(0.0, mark + host.step_s - time.perf_counter()) if first and self._leases else beat
            end = grant.end is not None and grant.end.kind is not EndKind.BUDGET
            wait = min(soon, max(0.0, mark + host.step_s - time.perf_counter())) if end else min(soon, beat)
            await dummy.host.pause(dummy, wait)
            mark = self._work(mark, host.step_s)

    def _word(self) -> Reports:
        return self.courier._collect()

    async def _sync(self, reports: Reports) -> Grant:
        begun = time.perf_counter()
        grant: Grant = await self.coordinator.sync.remote(self.run, reports)
        self.dummy.host.answers.append(time.perf_counter() - begun)
        return grant

    def _receive(self, grant: Grant) -> None:
        self.courier._receive(grant)
        while not self.courier.leases.empty():
            lease = self.courier.leases.get_nowait()
            if lease is None:
                self._ended = True
            elif isinstance(lease, Lease):
                self._leases.append(lease)

    def _work(self, mark: float, step_s: float) -> float:
        """Do the leased steps for which the time has come; returns when the last one ended."""
        now = time.perf_counter()
        if not self._leases:
            return max(mark, now - step_s)
        while self._leases and now >= mark + step_s:
            lease = self._leases.pop(0)
            mark += step_s
            self.step, self.worked_at = lease.step, now
            count = lease.shards[1] - lease.shards[0]
            self.courier.report(
                StepReport(
                    lease.step,
                    ((count, 1.0),),
                    1.0,
                    1e-3,
                    step_s,
                    compute_s=step_s,
                    samples=DIGEST * count,
                    progress=lease.progress[1],
                )
            )
            if lease.snapshot:
                self._snapshot(lease.step)
        return mark

    def _snapshot(self, step: int) -> None:
        """It is with its buddy at once."""
        order = self.order
        name = Held(order.member, order.view.number, step)
        keepers = dict(self.courier.end.keepers) if self.courier.end is not None else {}
        keeper = keepers.get(order.member, order.buddy)
        for dummy in (self.dummy, self.dummy.host.named.get(keeper) if keeper is not None else None):
            if dummy is not None:
                dummy.held = {
                    h: None for h in dummy.held if h.owner != order.member or h.step >= self.courier.committed
                }
                dummy.held[name] = None
        self.courier.report(SnapshotKept(step, 1e-4, 1000))


class Host:
    """Many dummies in one process. Runs as an async actor."""

    def __init__(self, step_s: float, per_node: int) -> None:
        self.step_s, self.per_node = step_s, per_node
        self.answers: list[float] = []
        """Seconds that the coordinator took to answer."""
        self.dummies: dict[str, Dummy] = {}
        self.named: dict[str, Dummy] = {}
        """By member."""
        self._nodes: dict[str, int] = {}

    def node_of(self, member: str) -> int:
        return self._nodes.setdefault(member, len(self._nodes) // self.per_node)

    async def call(self, dummy: str, name: str, *arguments: Any) -> Any:
        found = self.dummies.setdefault(dummy, Dummy(self))
        name = {"held": "held_now", "cut": "cut_view"}.get(name, name)
        answer = await getattr(found, name)(*arguments)
        if name == "prepare":
            self.named[answer.member] = found
        return answer

    async def pause(self, dummy: Dummy, seconds: float) -> None:
        """Until the time is over, or the view."""
        over = asyncio.ensure_future(dummy.cut.wait())
        await asyncio.wait({over}, timeout=seconds)
        over.cancel()

    async def kill(self, member: str) -> float:
        """A member dies, and its peers' collectives fail; returns the time."""
        self.named[member].dead.set()
        for dummy in self.named.values():
            dummy.cut.set()
        return time.time()

    async def pace(self, step_s: float) -> None:
        """From now on a step takes so long."""
        self.step_s = step_s

    async def take_answers(self) -> list[float]:
        answers, self.answers = self.answers, []
        return answers

    async def usage(self) -> dict[str, float]:
        return usage()


class DummyPool:
    """Lends dummies to one run."""

    def __init__(self) -> None:
        self._lent: dict[str, Lent] = {}
        self._number = 1
        self._next = 0
        self._allotted = 0
        self._changed = asyncio.Event()

    async def lend(self, handles: list[Any], allotted: int) -> None:
        """These too; the run may have `allotted`."""
        for handle in handles:
            name, self._next = f"dummy{self._next}", self._next + 1
            self._lent[name] = Lent(name, handle)
        self._allotted = allotted
        self._number += 1
        self._changed.set()

    async def sync(self, ask: Ask) -> Answer:
        if ask.heard == self._number:
            for name in [n for n in self._lent if n not in ask.holds]:
                del self._lent[name]
            self._changed.clear()
            await self._changed.wait()
        return Answer(self._number, self._allotted, "", tuple(self._lent.values()))

    async def leave(self, *_: Any) -> None: ...

    async def shell_rests(self, *_: Any) -> None: ...


class DummyFeed:
    """Reads nothing."""

    async def open(self, *_: Any) -> None: ...

    async def release(self, *_: Any) -> None: ...

    async def status(self) -> dict[str, Any]:
        return {}

    async def close(self) -> None: ...


class DummyShell(Shell):
    """As in a pool, with a feed that reads nothing."""

    def __init__(self, name: str, pool: str, node_id: str, feed: Any) -> None:
        super().__init__(name, pool, node_id)
        self._dummy_feed = feed

    def take_feed(self) -> Any:
        return self._dummy_feed


class Watched(Coordinator):
    """The coordinator, and somebody who looks at its process."""

    async def usage(self) -> dict[str, float]:
        return usage()

    async def profile(self, seconds: float) -> str:
        """Where its event loop spends the next seconds."""
        import cProfile
        import io
        import pstats

        profile = cProfile.Profile()
        profile.enable()
        await asyncio.sleep(seconds)
        profile.disable()
        out = io.StringIO()
        pstats.Stats(profile, stream=out).sort_stats("tottime").print_stats(45)
        return out.getvalue()


def usage() -> dict[str, float]:
    """Of this process: processor seconds, memory in MB."""
    import psutil

    process = psutil.Process()
    times = process.cpu_times()
    return {"cpu_s": times.user + times.system, "rss_mb": process.memory_info().rss / 1e6}


def handles(host: Any, names: Iterable[str]) -> list[Handle]:
    return [Handle(host, name) for name in names]
