"""One run, as the coordinator conducts it: from its first view to its conclusion.

Every method runs on one event loop, so that no state needs a lock. What to do is decided by pure functions
(`membership.decisions`); this file asks them and acts.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from shoal import logs
from shoal.coordinator import control
from shoal.coordinator.concluding import Ended, conclude
from shoal.coordinator.feeding import Feeding
from shoal.coordinator.leaving import look_for_notices
from shoal.coordinator.panel import Panel
from shoal.coordinator.plan import RunPlan
from shoal.coordinator.reviving import revive
from shoal.coordinator.scene import Scene
from shoal.coordinator.sharing import Sharing
from shoal.coordinator.staging import Stage
from shoal.coordinator.status import MemberStatus, RunStatus
from shoal.coordinator.watch import cause_of
from shoal.errors import ShoalError, WorkerLost
from shoal.membership.decisions import Conclude, Form, Wait, next_view
from shoal.membership.losses import Cause, Fail, Loss
from shoal.membership.messages import Grant, Reports
from shoal.membership.phases import Phase
from shoal.membership.view import MemberId
from shoal.tracking.ledger import read

WATCH_S = 0.25
"""Between two looks at deadlines, newcomers, leavers and the submitter."""
TIDY_S = 1.0
WAITED_S = 3.0
"""For how long the run has to wait for workers before it says so."""


class Run:
    """Carries out the decisions of `shoal.membership` for one run."""

    def __init__(self, plan: RunPlan, feed: Any, let_go: Callable[[], None], *, revived: bool) -> None:
        """`feed`: a feed's process at hand; None: one is started. `let_go` is called when the run is over and nobody is
        left who would fetch the outcome. `revived`: an earlier life of the coordinator has begun the run."""
        self.plan = plan
        self._event = asyncio.Event()
        logs.configure(plan.log_format, run=plan.run_id)
        self._scene = Scene(plan, self._event.set, self._lost)
        self._panel = Panel(self._scene)
        self._feeding = Feeding(plan, self._scene.book, lambda step: self._scene.course.positions.before(step), feed)
        self._stage = Stage(self._scene, self._feeding)
        self.sharing = Sharing(self._scene, self._feeding)
        self._incarnation = time.time_ns()
        self._revived, self._let_go = revived, let_go
        self._fading: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._ready = False
        self._life: asyncio.Task[Ended] | None = None
        self._asked_at = self._tidied_at = time.monotonic()

    # What the launcher and people call -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin. Does nothing if the run has begun."""
        if self._life is None:
            self._life = asyncio.ensure_future(self._live())

    async def outcome(self) -> Ended:
        """Wait for the end of the run. Raises ShoalError for what is wrong before it began."""
        self.begin()
        assert self._life is not None
        return await asyncio.shield(self._life)

    @property
    def is_over(self) -> bool:
        """Whether there is an outcome."""
        return self._life is not None and self._life.done()

    def close(self) -> Any:
        """The run is over, and its outcome is known to who wanted it; returns the feed's process, if it still lives."""
        if self._fading is not None:
            self._fading.cancel()
        return self._feeding.at_hand

    async def stop(self, reason: str, save: bool = True) -> None:
        """End cleanly at the next boundary: true status, and a checkpoint unless `save` is false."""
        if not self._scene.stop:
            self._scene.stop, self._scene.stop_saves = reason, save
        if self._scene.running is not None:
            self._scene.running.leasing.stop(self._scene.stop, checkpoint=self._scene.stop_saves)
        self._event.set()

    async def status(self, after: int | None) -> tuple[RunStatus, list[tuple[str, str]]]:
        """Where the run stands, and the news from number `after` on (None: an onlooker, who wants none)."""
        if after is not None:
            self._asked_at = time.monotonic()
        return control.status(self._scene), [] if after is None else self._scene.book.news(after)

    async def members(self) -> tuple[MemberStatus, ...]:
        """All workers: members in rank order, then the others."""
        return control.members(self._scene)

    async def scale(self, low: int, high: int) -> str:
        """Have between `low` and `high` workers from now on; says what will happen. Raises ConfigError."""
        said = control.scale(self._scene, low, high)
        self._event.set()
        return said

    async def end_worker(self, member: str, how: Literal["kill", "leave"]) -> str:
        """End one worker, at once or at the next boundary; says what will happen. Raises ConfigError."""
        said = control.end_worker(self._scene, member, how)
        self._event.set()
        return said

    # What the members call -----------------------------------------------------------------------------------------

    async def sync(self, reports: Reports) -> Grant:
        """Hear a member's reports, answer with its further leases."""
        if not self._ready:
            # A restarted coordinator has to look around first; the member keeps its reports and tries again.
            self.begin()
            raise ShoalError("the coordinator is being restored")
        grant = self._stage.hear(reports, self._incarnation)
        self._feeding.release(self._scene.book.committed)
        return grant

    def actor_of(self, member: MemberId) -> Any:
        """Raises WorkerLost for a worker that is gone."""
        hand = self._scene.crew.hands.get(member)
        if hand is None:
            raise WorkerLost(f"worker {member} is gone")
        return hand.actor

    # The run -------------------------------------------------------------------------------------------------------

    async def _live(self) -> Ended:
        """Views, one after another, until there is a conclusion."""
        scene, crew = self._scene, self._scene.crew
        scene.book.open(revived=self._revived)
        background = [asyncio.ensure_future(c) for c in (crew.take_in(), self._watch(), self.sharing.look_around())]
        for task in background:
            task.add_done_callback(self._background_ended)
        try:
            if self.plan.pool is not None and not self._revived:
                crew.want(scene.high)  # their places are their own
            await self._feeding.reserve()
            if self._revived:
                begin = revive(scene, self._feeding, self._stage)
            else:
                scene.set_out(read(scene.book.path)[0] if self.plan.continues else ())
                crew.want(scene.high)  # workers and feed start side by side
                begin = self._feeding.start(scene.durable.latest.step if scene.durable.latest else 0)
            await asyncio.gather(begin, scene.summary.load())
            self._ready = True
            decision = await self._views()
        except ShoalError as error:
            cause, text = cause_of(error)
            decision = Conclude("failed", f"{cause.value}: {text}")
        finally:
            for task in background:
                task.cancel()
            crew.end_all()
            await self._feeding.end()
        scene.move(Phase.DONE)
        ended = await conclude(scene, decision)
        self._panel.show()
        self._fading = asyncio.ensure_future(self._fade())
        return ended

    async def _fade(self) -> None:
        """After the end: nobody may be left who would fetch the outcome."""
        while time.monotonic() - self._asked_at <= self.plan.driver_silence_s:
            await asyncio.sleep(1.0)
        self._let_go()

    async def _views(self) -> Conclude:
        scene = self._scene
        if scene.running is not None:
            await self._stage.finish()  # a view that was under way when this coordinator was restarted
        while True:
            if not scene.finished:
                self._judge_starts()
            decision = next_view(scene.situation())
            if isinstance(decision, Conclude):
                return decision
            if isinstance(decision, Form):
                scene.waiting = ""
                await self._stage.play(decision)
            else:
                await self._wait(decision)

    async def _wait(self, decision: Wait) -> None:
        """Until something has changed. Before the first view, not for ever: a cluster may be too small."""
        scene = self._scene
        if scene.phase is not Phase.STARTING:
            scene.move(Phase.WAITING)
            scene.waiting = decision.reason
            self._stage.let_go(())  # others have the state; what is waited for may need the leavers' places
        elif scene.crew.overdue():
            scene.verdict = Fail(scene.crew.shortage())
            return
        elif scene.crew.waited() > WAITED_S and scene.crew.lacks_places and not scene.waiting:
            scene.waiting = f"waiting up to {self.plan.job.workers.start_s:g}s for the cluster: {scene.crew.shortage()}"
            scene.book.say("warning", scene.waiting)
        self._event.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._event.wait(), WATCH_S)

    def _judge_starts(self) -> None:
        """Workers that failed to start are losses like others."""
        scene, crew = self._scene, self._scene.crew
        while crew.failures:
            member, error = crew.failures.pop(0)
            cause, text = cause_of(error)
            if cause is Cause.DATA and scene.formed:
                cause = Cause.LOST  # the members read the same data: if it cannot be read they will say so
            then = "; another one is asked for" + (" after a while" if cause is Cause.REFUSED else "")
            verdict = scene.charge(Loss(cause, (member,), text), then)
            if isinstance(verdict, Fail):
                scene.verdict = verdict

    def _lost(self, member: MemberId, error: BaseException) -> None:
        """A worker that was ready has died."""
        self._stage.lost(member, error)
        self._event.set()

    async def _watch(self) -> None:
        """Deadlines, newcomers and leavers, a submitter that is gone, a record that cannot be kept."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = time.monotonic()
            if not self._ready:
                continue
            self._scene.tend()
            if not self._scene.finished:
                self.sharing.tend(now)
            if self._scene.running is not None:
                if self._scene.crew.lost:
                    self._scene.running.leasing.stop(self._scene.crew.lost)
                self._judge_starts()
                self._stage.steer(now)
            if now - self._tidied_at >= TIDY_S:
                self._tidied_at = now
                self._scene.book.look_after()
                self._panel.show()
                if self._looking is None or self._looking.done():  # not waited for: without a GCS there is no answer
                    self._looking = asyncio.ensure_future(look_for_notices(self._scene))
                    self._looking.add_done_callback(self._background_ended)
                self._stage.read_meters()
                await self._mind_submitter(now)

    async def _mind_submitter(self, now: float) -> None:
        if now - self._asked_at <= self.plan.driver_silence_s:
            return
        if self.plan.if_detached == "stop":
            await self.stop("the submitting process is gone")

    def _background_ended(self, task: asyncio.Future[None]) -> None:
        """A run without its watch could hang, and would not know it: end it while that is still possible."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        text = "".join(traceback.format_exception(error))
        self._scene.verdict = Fail(f"{Cause.INTERNAL.value} in the coordinator, please report this:\n{text}")
        if self._scene.running is not None:
            self._scene.running.leasing.stop("the coordinator failed")
        self._event.set()
