"""A view that is being lived: its leases, what its members reported, their pulse, and how it ended for each of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from statistics import fmean, median
from typing import Any

from shoal.coordinator.plan import RunPlan
from shoal.coordinator.watch import Pulse
from shoal.errors import WorkerLost
from shoal.membership.commits import Tally
from shoal.membership.leasing import MOST_STEPS_APART, EndKind, Leasing, ahead_s, horizon, steps_apart
from shoal.membership.messages import Entered, Grant, Reports, Source, ViewEnd
from shoal.membership.stragglers import Paces
from shoal.membership.view import MemberId

OUT_S = 5.0
"""How long a member that was cut loose may take to come out of a step, or three steps if those are longer."""
GONE_S = 1.0
"""A member that was killed counts as gone after this long, whether its death was seen or not."""
RECENT = 20


class Running:
    """One view from its order to its end."""

    def __init__(self, plan: RunPlan, leasing: Leasing, source: Source, paces: Paces, *, cold: bool) -> None:
        """`cold`: the members may have to import, compile and load before they get on."""
        self.view, self.source = leasing.view, source
        view = leasing.view
        self.sharded = plan.sharded
        self.leasing = leasing
        self.tally = tally_of(plan, self.leasing)
        self.pulse = Pulse(plan.job.workers.silence_s, cold=cold)
        self.pulse.begin(view.members, time.monotonic())
        paces.keep(view.members)
        self.paces = paces
        self.entered: dict[MemberId, Entered] = {}
        self.killed: dict[MemberId, str] = {}
        """Members that were cut out here, and why."""
        self.broken_at: float | None = None
        self._plan = plan
        self._broken_up = asyncio.Event()
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._waited: deque[float] = deque(maxlen=RECENT)
        self._sent: deque[float] = deque(maxlen=RECENT)
        self._shards = {m: len(its) for m, its in view.divided(plan.job.batch.virtual_shards).items()}

    @property
    def number(self) -> int:
        return self.view.number

    @property
    def step_s(self) -> float | None:
        """Seconds that a step takes in this view; None: none is done yet."""
        return median(self._steps) if self._steps else None

    @property
    def quickest_s(self) -> float | None:
        """Seconds that the quickest of its last steps took: what is to come may take, once everything is warm. The
        first step of a view can take many times as long."""
        return min(self._steps, default=None)

    @property
    def changing(self) -> bool:
        """Whether the view ends for another one."""
        return self.leasing.end is not None and self.leasing.end.kind is EndKind.CHANGE

    @property
    def all_entered(self) -> bool:
        return len(self.entered) == self.view.size

    def hear(self, reports: Reports, now: float) -> None:
        """What a member says of itself; what it has done is the account's."""
        self.pulse.beat(reports.member, reports.progress, now)
        if reports.entered is not None:
            self.entered[reports.member] = reports.entered
        for step in reports.steps:
            self.paces.add(reports.member, step.step, step.compute_s / self._shards[reports.member])
            self._steps.append(step.step_s)
        self._note_costs(reports)

    def grant(self, member: MemberId, committed: int, incarnation: int) -> Grant:
        """The answer: leases as far ahead as is good, and the view's end if it is known."""
        ahead = horizon(self.tally.reported, self.quickest_s, ahead_s=ahead_s(self.view.size))
        last = self._plan.until_step
        self.leasing.extend(ahead if last is None else min(ahead, last), self.snapshot_every)
        if ended := self._plan.stretch_ended(self.leasing.leased_until):
            self.leasing.stop(ended)
        return Grant(self.leasing.take(member), self.leasing.end, committed, incarnation)

    @property
    def snapshot_every(self) -> int:
        """Steps between snapshots: what the job fixes, else as often as they cost SNAPSHOT_SHARE of the time. No second
        one before it is known what the first has cost."""
        fixed = self._plan.job.failures.snapshot_every
        if fixed is not None:
            return fixed
        if not (self._waited and self._sent and self.step_s):
            return MOST_STEPS_APART
        return steps_apart(fmean(self._waited) + fmean(self._sent), self.step_s)

    def _note_costs(self, reports: Reports) -> None:
        """What training waited for, and what was computed beside it, which takes as much where no core is to spare."""
        self._waited.extend(s.snapshot_s for s in reports.steps if s.snapshot_s)
        self._sent.extend(k.seconds for k in reports.snapshots)

    async def ends(
        self, refs: Mapping[MemberId, Any], actors: Mapping[MemberId, Any], kill: Callable[[MemberId, str], None]
    ) -> dict[MemberId, ViewEnd | BaseException]:
        """Wait until the view is over for every member, and how it ended for each.

        As soon as one is out too early, or the view is broken up, all others are cut loose, for they can only wait.
        Who does not come out in time is killed.
        """
        tasks: dict[asyncio.Future[Any], MemberId] = {
            asyncio.ensure_future(_result(ref)): member for member, ref in refs.items()
        }
        pending: set[asyncio.Future[Any]] = set(tasks)
        out: asyncio.Queue[asyncio.Future[Any]] = asyncio.Queue()
        broken_up: asyncio.Future[Any] = asyncio.ensure_future(self._broken_up.wait())
        for task in (*tasks, broken_up):
            task.add_done_callback(out.put_nowait)
        found: dict[MemberId, ViewEnd | BaseException] = {}
        deadline: float | None = None
        killed = False
        while pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            done = await _next_of(out, left)
            pending -= done
            found.update({tasks[t]: t.result() for t in done if t in tasks})
            if deadline is None and (broken_up in done or any(_too_early(t.result()) for t in done)):
                self.broken_at = time.monotonic()
                self.cut({m: actors[m] for t in pending if (m := tasks[t]) in actors})
                deadline = self.broken_at + max(OUT_S, 3 * (self.step_s or 0.0))
            if deadline is not None and pending and time.monotonic() >= deadline:
                late = {tasks[t]: t for t in pending}
                if killed:
                    # Ray cannot say for sure that it is dead, for example because its node does not answer.
                    found.update({m: WorkerLost(f"worker {m} was given up") for m in late})
                    pending = set()
                for member in late if not killed else ():
                    kill(member, f"did not come out of view {self.number} after it broke")
                killed, deadline = True, time.monotonic() + GONE_S
        broken_up.cancel()
        return found

    def break_up(self) -> None:
        """End the view: no member gets on, and nothing tells whose fault it is."""
        self._broken_up.set()

    def cut(self, actors: Mapping[MemberId, Any]) -> None:
        """Make whatever these members wait for in this view fail at once."""
        for actor in actors.values():
            actor.cut.remote(self._plan.key, self.number)


async def _next_of(out: asyncio.Queue[asyncio.Future[Any]], timeout_s: float | None) -> set[asyncio.Future[Any]]:
    """Those that are out by now; waits for one, but not for longer than `timeout_s`. Looks at no other."""
    done = set()
    with suppress(asyncio.TimeoutError):
        done.add(await asyncio.wait_for(out.get(), timeout_s))
    while not out.empty():
        done.add(out.get_nowait())
    return done


def tally_of(plan: RunPlan, leasing: Leasing) -> Tally:
    """The tally of a view."""
    return Tally(
        leasing.view,
        first_step=leasing.first_step,
        course=leasing.plan.course,
        sharded=plan.sharded,
        last_due=leasing.last_due,
    )


async def _result(ref: Awaitable[ViewEnd]) -> ViewEnd | BaseException:
    try:
        return await ref
    except Exception as error:  # noqa: BLE001 - an outcome like any other, judged later
        return error


def _too_early(end: ViewEnd | BaseException) -> bool:
    return not isinstance(end, ViewEnd) or end.broken is not None
