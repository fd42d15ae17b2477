"""The coordinator: the one actor that decides. It admits, leases steps, records commits, and never touches a tensor.

It is an asynchronous Ray actor: every method runs on one event loop, so that no state needs a lock.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal

import ray

from shoal.coordinator.book import Book
from shoal.coordinator.crew import Crew
from shoal.coordinator.durable import Durable
from shoal.coordinator.plan import RunPlan
from shoal.coordinator.status import RunStatus
from shoal.coordinator.watch import Pulse, cause_of, classify, outcome_of
from shoal.data.feed import start_feed
from shoal.errors import ShoalError
from shoal.job import by_value
from shoal.membership.commits import Tally
from shoal.membership.leasing import Leasing, horizon
from shoal.membership.losses import Fail, Loss, after_loss
from shoal.membership.messages import Grant, Reports, ViewOrder
from shoal.membership.phases import Phase, move
from shoal.membership.view import View
from shoal.ray_compat import yield_to_training
from shoal.tasks.base import Task
from shoal.worker.actor import Outfit

AHEAD_S = 1.0
"""How far ahead steps are leased: the longest that a stop or a change of the view waits for its boundary."""
RELEASE_EVERY_S = 1.0
FEED_CLOSE_S = 10.0
RECORD_DEADLINE_S = 60.0
"""How long the end of a run waits for MLflow, if it was up before; on a busy machine making a new store takes long."""

_SHOWN = {
    Phase.STARTING: "starting",
    Phase.FORMING: "forming",
    Phase.RUNNING: "training",
    Phase.ENDING: "finishing",
    Phase.DONE: "finishing",
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How the run ended."""

    status: Literal["finished", "failed", "stopped"]
    step: int
    reason: str
    checkpoint: str | None
    metrics: dict[str, float]
    unsent: int
    """Ledger entries that MLflow could not be given."""


class Coordinator:
    """Carries out the decisions of `shoal.membership` for one run."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._phase = Phase.STARTING
        self._book = Book(plan)
        self._durable = Durable(plan)
        self._crew = Crew(plan.job.workers, self._outfit(), self._book.say)
        self._feed: Any = None
        self._view_number = 0
        self._leasing: Leasing | None = None
        self._tally: Tally | None = None
        self._model: dict[str, Any] = {}
        self._pulse = Pulse(plan.job.workers.silence_s)
        self._publishing: set[asyncio.Task[None]] = set()
        self._failed_checkpoint: tuple[int, str] | None = None
        self._task: Task = plan.job.task
        self._stop: str | None = None
        self._asked_at = self._released_at = time.monotonic()
        yield_to_training()

    # What the driver calls -------------------------------------------------------------------------------------

    async def run(self) -> Ended:
        """The whole run: views one after another until the budget is used, a stop, or a loss that ends it."""
        self._book.open()
        loading = asyncio.ensure_future(asyncio.to_thread(self._load_task))
        self._watching = asyncio.ensure_future(self._watch())
        self._watching.add_done_callback(self._watch_ended)
        used, decision = 0, None
        try:
            while decision is None:
                broken = await self._one_view()
                if broken is None:
                    break
                verdict = after_loss(broken, used=used, max_failures=self._plan.job.failures.max_failures)
                self._book.write("loss", members=list(broken.members), cause=broken.cause.value, reason=verdict.reason)
                if isinstance(verdict, Fail):
                    decision = verdict
                else:
                    used += 1
                    self._book.say("loss", f"{verdict.reason}; going on from step {self._done()}")
        finally:
            loading.cancel()
            await self._end_feed()
        return await self._conclude(decision)

    async def stop(self, reason: str) -> None:
        """End cleanly at the next boundary: checkpoint, true status."""
        self._stop = self._stop or reason
        if self._leasing is not None:
            self._leasing.stop(reason)

    async def status(self, after: int) -> tuple[RunStatus, list[tuple[str, str]]]:
        """Where the run stands, and the news from number `after` on."""
        self._asked_at = time.monotonic()
        book, plan = self._book, self._plan
        last, step_s, tokens = book.last, book.step_s, plan.job.task.tokens_per_sample
        speed = plan.job.batch.size / step_s if step_s else None
        done = last.step if last else 0
        return RunStatus(
            phase="stopping" if self._stop else _SHOWN[self._phase],
            step=done,
            total_steps=plan.total_steps,
            loss=last.loss if last else None,
            samples_per_s=speed,
            tokens_per_s=speed * tokens if speed and tokens else None,
            workers=self._leasing.view.size if self._leasing else 0,
            wanted=plan.job.workers.max,
            eta_s=(plan.total_steps - done) * step_s if step_s else None,
            evaluation=book.evaluation,
        ), book.news(after)

    # What the members call -------------------------------------------------------------------------------------

    async def sync(self, reports: Reports) -> Grant:
        """Hear a member's reports, answer with its further leases."""
        leasing, tally = self._leasing, self._tally
        if leasing is None or tally is None or reports.view != leasing.view.number:
            return Grant()  # a late word from a view that is gone
        self._pulse.beat(reports.member, progressed=bool(reports.steps), now=time.monotonic())
        commits = [c for r in reports.steps for c in tally.step(reports.member, r)]
        self._book.commits(commits)
        for evaluation in reports.evaluations:
            for step, means, seconds in tally.evaluation(reports.member, evaluation):
                self._book.evaluated(step, self._summarize(means), seconds)
        for part in reports.written:
            for step, parts in tally.written(reports.member, part):
                self._publish(step, parts)
        leasing.extend(horizon(tally.reported, self._book.fastest_step_s, ahead_s=AHEAD_S))
        self._release(tally.committed)
        if leasing.end is not None and self._phase is Phase.RUNNING:
            self._phase = move(self._phase, Phase.ENDING)
        return Grant(leasing.take(reports.member), leasing.end)

    def _release(self, committed: int) -> None:
        """Let the feed drop what is committed. Blocks hold many steps: once a second is often enough."""
        now = time.monotonic()
        if now - self._released_at >= RELEASE_EVERY_S:
            self._released_at = now
            self._feed.release.remote("train", committed * self._plan.job.batch.size)

    # One view --------------------------------------------------------------------------------------------------

    async def _one_view(self) -> Loss | None:
        """Start workers, form a view, train until it ends (None) or breaks (why)."""
        self._phase = move(self._phase, Phase.STARTING)
        latest = self._durable.latest
        done, checkpoint = (latest.step, latest.uri) if latest else (0, None)
        try:
            await self._start_feed(done)
            facts = await self._crew.start()
            if self._stop:
                return None
            self._phase = move(self._phase, Phase.FORMING)
            refs = await self._form(View(self._view_number + 1, tuple(facts)), checkpoint, done)
            self._phase = move(self._phase, Phase.RUNNING)
            broken = await self._members_return(refs)
            await asyncio.gather(*self._publishing)
        except (ShoalError, ray.exceptions.RayError) as error:
            # Whatever fails while workers start or form is judged like a loss in the middle of training.
            cause, text = cause_of(error)
            broken = Loss(cause, ("a worker that was starting",), text)
        finally:
            self._leasing = self._tally = None
            self._crew.end()
        return broken

    async def _form(self, view: View, checkpoint: str | None, done: int) -> dict[str, Any]:
        self._view_number = view.number
        hands = [self._crew.hands[m] for m in view.members]
        address = await hands[0].actor.open_store.remote(view.size)
        self._model = hands[0].facts.model if hands[0].facts else {}
        reason = f"resumed after step {done}" if done else "start"
        self._book.write(
            "view",
            number=view.number,
            members=[{"id": h.member, "node": h.facts.node, "device": h.facts.device} for h in hands if h.facts],
            first_step=done + 1,
            reason=reason,
        )
        if view.number > 1 or self._plan.continues or done:
            self._book.write("resume", from_step=done, checkpoint=checkpoint, reason=reason)
        self._book.say("view", f"view {view.number}: {view.size} workers, {reason}")
        self._leasing = Leasing(view, self._plan.leasing(), done + 1)
        self._tally = Tally(view, first_step=done + 1, batch_size=self._plan.job.batch.size)
        self._pulse.begin(view.members, time.monotonic())
        if self._stop:
            self._leasing.stop(self._stop)
        me = ray.get_runtime_context().current_actor
        return {
            h.member: h.actor.run_view.remote(ViewOrder(view, h.member, address, done + 1, checkpoint), me, self._feed)
            for h in hands
        }

    async def _members_return(self, refs: dict[str, Any]) -> Loss | None:
        """Wait until all members are back, or one has failed."""
        errors = await outcome_of(refs)
        if not errors:
            return None
        return classify(errors, silent=self._pulse.killed)

    def _publish(self, step: int, parts: list[Any]) -> None:
        async def publish() -> None:
            entry = await self._durable.publish(step, parts, self._model, self._book.metrics(step))
            self._failed_checkpoint = (step, entry["error"]) if "error" in entry else None
            self._book.checkpoint(entry)

        task = asyncio.ensure_future(publish())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    # The rest --------------------------------------------------------------------------------------------------

    def _load_task(self) -> None:
        """Unpickle the task, for its `summarize`; in a thread, because that runs the recipe's imports."""
        try:
            self._task = by_value.loads(self._plan.job_blob).task
        except Exception as error:  # noqa: BLE001 - the user's imports; the workers run them too and will say so
            self._book.say("warning", f"the task cannot be loaded beside the coordinator, metrics stay plain: {error}")

    def _summarize(self, means: dict[str, float]) -> dict[str, float]:
        try:
            return dict(self._task.summarize(means))
        except Exception as error:  # noqa: BLE001 - the user's code; the plain means are worth more than a failed run
            self._book.say(
                "warning", f"{type(self._task).__name__}.summarize failed ({error}); the means are kept plain"
            )
            return means

    async def _watch(self) -> None:
        """Once a second: members that fall silent, a submitter that is gone, a record that cannot be kept."""
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            self._book.look_after()
            for member in self._pulse.silent(now) if self._leasing else ():
                hand = self._crew.hands.get(member)
                if hand is not None:
                    self._book.say("loss", f"worker {member} made no progress for {self._pulse.limit_s:g}s: killed")
                    self._pulse.killed.add(member)
                    ray.kill(hand.actor, no_restart=True)
            if now - self._asked_at > self._plan.driver_silence_s:
                await self.stop("the submitting process is gone")
                if self._phase is Phase.DONE:
                    # Nobody is left who would fetch the outcome and end this actor.
                    ray.kill(ray.get_runtime_context().current_actor)

    def _watch_ended(self, watch: asyncio.Future[None]) -> None:
        if not watch.cancelled():
            self._book.say("warning", f"deadlines are no longer watched, please report this: {watch.exception()!r}")

    async def _start_feed(self, done: int) -> None:
        """A new feed from the position after step `done`; blocks that were released are read again."""
        await self._end_feed()
        plan, batch = self._plan, self._plan.job.batch.size
        self._feed = await asyncio.to_thread(
            start_feed,
            plan.train,
            plan.validation,
            plan.job.data,
            seed=plan.job.seed,
            start=done * batch,
            stop=plan.total_steps * batch,
            validation_samples=plan.validation_samples,
            node_id=plan.node_id,
        )

    async def _end_feed(self) -> None:
        if self._feed is None:
            return
        feed, self._feed = self._feed, None
        try:
            await asyncio.wait_for(feed.close.remote(), FEED_CLOSE_S)
        except (ray.exceptions.RayError, asyncio.TimeoutError):
            self._book.say("warning", "the feed did not close in time and was killed")
        ray.kill(feed, no_restart=True)

    def _done(self) -> int:
        return self._durable.latest.step if self._durable.latest else 0

    async def _conclude(self, decision: Fail | None) -> Ended:
        self._phase = move(self._phase, Phase.DONE)
        step = self._book.last.step if self._book.last else 0
        failed = self._failed_checkpoint
        if decision is not None:
            status, reason = "failed", decision.reason
        elif failed is not None:
            status, reason = "failed", f"the checkpoint of the last step {failed[0]} could not be written: {failed[1]}"
        elif self._stop and step < self._plan.total_steps:
            status, reason = "stopped", self._stop
        else:
            status, reason = "finished", "the budget is used up"
        unsent = await asyncio.to_thread(self._book.close, status, reason, RECORD_DEADLINE_S)
        latest = self._durable.latest
        return Ended(status, step, reason, latest.uri if latest else None, self._book.metrics(step), unsent)  # type: ignore[arg-type]

    def _outfit(self) -> Outfit:
        plan = self._plan
        return Outfit(
            member="",
            job=plan.job_blob,
            total_steps=plan.total_steps,
            checkpoint_uri=plan.checkpoint_uri,
            export_uri=plan.export_uri,
            validation_samples=plan.validation_samples,
        )
