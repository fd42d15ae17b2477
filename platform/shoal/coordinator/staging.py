"""One view from the decision to its end: orders out, reports in, changes at its boundary, losses judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from shoal.coordinator.changes import Change
from shoal.coordinator.feeding import Feeding
from shoal.coordinator.leaving import hear_leave
from shoal.coordinator.running import Running
from shoal.coordinator.scene import Scene
from shoal.coordinator.sight import blind_spots
from shoal.coordinator.watch import cause_of
from shoal.errors import WorkerLost
from shoal.membership.buddies import buddies
from shoal.membership.commits import Progressed
from shoal.membership.decisions import Form, change_wanted
from shoal.membership.leasing import Due, EndKind
from shoal.membership.losses import NEVER_CHARGED, Cause, explain
from shoal.membership.messages import Fresh, Grant, InMemory, Reports, Stored, ViewEnd, ViewOrder
from shoal.membership.phases import Phase
from shoal.membership.reach import cut_off
from shoal.membership.recovery import Formed
from shoal.membership.view import MemberId, View
from shoal.tracking.changes import describe
from shoal.worker.outfit import Links

HELD_S = 2.0
"""Longest wait for a worker to say what it holds; one that does not is asked no more than its last word said."""


_SOURCES = {Fresh: "initial weights", Stored: "checkpoint", InMemory: "memory"}


class Stage:
    """Where views are played. Holds the one that runs in `scene.running`."""

    def __init__(self, scene: Scene, feeding: Feeding) -> None:
        self._scene, self._feeding = scene, feeding
        self._refs: dict[MemberId, Any] = {}
        self._change: Change | None = None
        self._slow: set[MemberId] = set()
        self._asked: dict[MemberId, asyncio.Task[None]] = {}

    # A view --------------------------------------------------------------------------------------------------------

    async def play(self, form: Form) -> None:
        """Form a view and see it through to its end."""
        scene = self._scene
        await self._feeding.ensure(form.source.step)
        scene.number += 1
        scene.tend()
        view = View(scene.number, form.members, form.cuts)
        owes = scene.account.owes(form.source.step) if scene.formed else None
        leasing = scene.leasing(view, form.source.step, owes)
        running = Running(scene.plan, leasing, form.source, scene.paces, cold=not scene.formed)
        scene.spending.begin(time.monotonic())
        scene.spending.view()
        self._tell(form, running)
        scene.account.begin(running.tally)
        scene.formed.append(Formed(view, form.source.step))
        scene.running, scene.verdict = running, None
        scene.move(Phase.FORMING)
        if self._change is not None:
            self._change.into(view, form.source.step)
        if scene.stop:
            running.leasing.stop(scene.stop, checkpoint=scene.stop_saves)
        self.let_go(view.members)
        actors = {m: scene.crew.hands[m].actor for m in view.members}
        self._refs = self._order(running, actors)
        scene.crew.warm = self._warm
        await self.finish()

    def adopt(self, refs: Mapping[MemberId, Any], lost: Mapping[MemberId, BaseException]) -> None:
        """Take over the view `scene.running`: its members say through `refs` how it ended; `lost` are gone already."""
        self._refs = {**refs, **{m: _already(error) for m, error in lost.items()}}
        self._scene.crew.warm = self._warm

    async def finish(self) -> None:
        """Wait for the end of the running view, and judge it."""
        scene, running = self._scene, self._scene.running
        assert running is not None
        actors = {m: scene.crew.hands[m].actor for m in self._refs if m in scene.crew.hands}
        found = await running.ends(self._refs, actors, self._kill)
        scene.move(Phase.DECIDING)
        scene.running = None
        ends = {m: e for m, e in found.items() if isinstance(e, ViewEnd)}
        errors = {m: e for m, e in found.items() if isinstance(e, BaseException)}
        broken = {m: e.broken for m, e in ends.items() if e.broken is not None}
        if broken and not errors:
            errors = await self._out_of_sight(running)
        scene.words.update(ends)
        self._hear_meters(running, ends)
        self._publish(running, scene.account.close(ends.values()))
        if running.sharded:
            await self._ask_what_is_held()
        end = running.leasing.end
        if not errors and not broken:
            assert end is not None, "members leave a view in good order only at its end"
            if end.kind is not EndKind.CHANGE:
                await scene.durable.all_published()
            # Once more for an evaluation that was lost with the coordinator that had heard of it.
            scene.finished = end.kind is EndKind.BUDGET and scene.account.owes(end.step) == Due()
        else:
            self._judge(running, errors, broken)
        if not scene.finished:
            self._note_change(running, ends, errors)

    async def _out_of_sight(self, running: Running) -> dict[MemberId, BaseException]:
        """A view broke and nobody is lost: perhaps its members do not reach each other. Who is to be left out then."""
        hands = [h for m in running.view.members if (h := self._scene.crew.hands.get(m)) is not None]
        unseen = await blind_spots(self._scene.plan.key, {h.member: (h.actor, h.facts) for h in hands if h.facts})
        apart = cut_off(running.view.members, unseen)
        return {
            m: WorkerLost(f"worker {m} and {', '.join(others)} do not reach each other") for m, others in apart.items()
        }

    async def _ask_what_is_held(self) -> None:
        """Copies may have reached their keepers after these had said their last word in the view."""
        scene = self._scene
        asked = {
            m: h.actor.held.remote(scene.plan.key) for m in scene.words if (h := scene.crew.hands.get(m)) is not None
        }
        answers = await asyncio.gather(*(asyncio.wait_for(r, HELD_S) for r in asked.values()), return_exceptions=True)
        for member, held in zip(asked, answers, strict=True):
            if member in scene.words and isinstance(held, tuple):
                scene.words[member] = replace(scene.words[member], held=held)

    def _hear_meters(self, running: Running, ends: Mapping[MemberId, ViewEnd]) -> None:
        """The last words of a view's members say what they used since the ones before."""
        spending, now = self._scene.spending, time.monotonic()
        for member, end in ends.items():
            if end.reports is not None and end.broken is None:
                spending.hear(end.reports, now, entered=member in running.entered)
            elif end.reports is not None:
                spending.left_view(end.reports, now)

    def read_meters(self) -> None:
        """Ask the workers that are in no view, and so say nothing by themselves, what they use. Nobody waits for it."""
        scene = self._scene
        members = scene.running.view.members if scene.running is not None else ()
        for member, hand in scene.crew.hands.items():
            if hand.facts is not None and member not in members and member not in self._asked:
                self._asked[member] = asyncio.ensure_future(self._read_meter(member, hand.actor))

    async def _read_meter(self, member: MemberId, actor: Any) -> None:
        with suppress(asyncio.TimeoutError, ray.exceptions.RayError):
            reading, leaving = await asyncio.wait_for(actor.reading.remote(self._scene.plan.key), HELD_S)
            self._scene.spending.beside(member, reading, time.monotonic())
            hear_leave(self._scene, member, leaving)
        del self._asked[member]

    def _tell(self, form: Form, running: Running) -> None:
        scene, view, owes = self._scene, running.view, running.leasing.owes
        old = scene.formed[-1].view.members if scene.formed else ()
        facts = {m: scene.crew.hands[m].facts for m in view.members}
        if not scene.durable.model:
            scene.durable.model = next(f.model for f in facts.values() if f is not None)
        lost = self._change.lost if self._change is not None else {}
        first = form.source.step + 1
        scene.book.write(
            "view",
            number=view.number,
            members=[
                {"id": m, "node": f.node, "address": f.address, "device": f.device} for m, f in facts.items() if f
            ],
            first_step=first,
            source=_SOURCES[type(form.source)],
            cuts=list(view.cuts) if view.cuts else None,
            owes=[what for what in ("evaluate", "checkpoint") if getattr(owes, what)],
            reason=form.reason,
            joined=[m for m in view.members if m not in old],
            left=[m for m in old if m not in view.members and m not in lost],
            lost=list(lost),
        )
        if form.source.step < scene.book.committed or (not old and (form.source.step or scene.plan.continues)):
            uri = getattr(form.source, "uri", None)
            scene.book.write("resume", from_step=form.source.step, checkpoint=uri, reason=form.reason)
            scene.book.roll_back(form.source.step)
        scene.book.say("view", f"view {view.number}: {view.size} workers from step {first}, {form.reason}")

    def _order(self, running: Running, actors: Mapping[MemberId, Any]) -> dict[MemberId, Any]:
        scene, view, owes = self._scene, running.view, running.leasing.owes
        keepers = self._keepers(view) if running.sharded else {}
        first = scene.crew.hands[view.members[0]].facts
        assert first is not None, "only workers that are ready are in a view"
        links = partial(Links, ray.get_runtime_context().current_actor, self._feeding.feed)
        orders = {
            m: ViewOrder(
                view,
                m,
                first.rendezvous,
                running.source,
                keepers.get(m),
                evaluate=owes.evaluate,
                checkpoint=owes.checkpoint,
            )
            for m in view.members
        }
        # To each only what it needs: the handles of all in each order would grow with the square of the members.
        known = {m: {k: actors[k]} if (k := keepers.get(m)) is not None else {} for m in orders}
        return {m: actors[m].run_view.remote(scene.plan.key, order, links(known[m])) for m, order in orders.items()}

    def let_go(self, members: Collection[MemberId]) -> None:
        """End the workers that are to leave and are not among `members`."""
        for hand in [h for h in self._scene.crew.hands.values() if h.leaving and h.member not in members]:
            self._scene.words.pop(hand.member, None)
            self._scene.crew.end(hand.member)

    def _keepers(self, view: View, leaving: tuple[MemberId, ...] = ()) -> dict[MemberId, MemberId]:
        hands = self._scene.crew.hands
        nodes = {m: f.node for m in view.members if m in hands and (f := hands[m].facts) is not None}
        return buddies(view.members, nodes, leaving)

    async def _warm(self, actor: Any) -> None:
        """A newcomer's dry step, on samples that are not released yet."""
        scene, running = self._scene, self._scene.running
        if running is None:
            return  # everybody waits for it
        step = running.leasing.leased_until
        if step != scene.course.last:
            at, size = scene.course.positions.before(step), scene.course.batch(max(1, step))
            shard_size = size // scene.plan.job.batch.virtual_shards
            await actor.warm_up.remote(scene.plan.key, self._feeding.feed, at, shard_size)

    # While it runs ---------------------------------------------------------------------------------------------------

    def hear(self, reports: Reports, incarnation: int) -> Grant:
        """A member's reports; its further leases."""
        scene, running = self._scene, self._scene.running
        if running is None or reports.view != running.number:
            return Grant(incarnation=incarnation, over=True)  # from a view that is gone
        now, entered = time.monotonic(), reports.member in running.entered
        running.hear(reports, now)
        hear_leave(scene, reports.member, reports.leaving)
        scene.spending.hear(reports, now, entered=entered)
        if running.all_entered:
            self._all_in(running)
        self._publish(running, scene.account.add(reports))
        scene.look_ahead(running)
        known = scene.course.last is not None
        grant = running.grant(reports.member, scene.account.committed, incarnation)
        scene.write_decisions()
        scene.mind_budget(known)
        if running.leasing.end is not None and scene.phase is Phase.RUNNING:
            scene.move(Phase.ENDING)
        return grant

    def _publish(self, running: Running, progressed: Progressed) -> None:
        self._scene.publish(progressed)
        new = [c.step for c in progressed.commits if c.view == running.number]
        if new:
            self._tell_change(new[0])

    def _all_in(self, running: Running) -> None:
        """All members have formed the group and hold the state."""
        scene = self._scene
        if scene.phase is Phase.FORMING:
            scene.move(Phase.RUNNING)
        if self._change is not None:
            self._change.all_in(running.entered)

    def steer(self, now: float) -> None:
        """End the view at its boundary if another one is wanted; find members that are stuck, or slow."""
        scene, running = self._scene, self._scene.running
        assert running is not None
        self.let_go(running.view.members)
        if running.leasing.end is None:
            change = change_wanted(scene.situation())
            if change is not None:
                keepers = self._keepers(running.view, change.leaves) if running.sharded else {}
                running.leasing.change(change.reason, keepers=keepers, checkpoint=change.checkpoint)
                scene.book.say("info", f"another view after step {running.leasing.leased_until}: {change.reason}")
        if running.broken_at is None:
            self._mind_stuck(running, now)
        self._mind_stragglers(running)

    def _mind_stuck(self, running: Running, now: float) -> None:
        stuck = running.pulse.stuck(now, running.step_s)
        if stuck is None:
            return
        for member, seen in stuck.items():
            if member not in running.killed:
                self._scene.book.say("hang", f"worker {member} is cut out: it {seen}")
                self._kill(member, seen)
        if not stuck:
            still = now - running.pulse.last_moved
            said = f"no member of view {running.number} has got on for {still:.1f}s, and they wait for each other"
            self._scene.book.say("hang", f"{said}: it is broken up")
            running.break_up()

    def _mind_stragglers(self, running: Running) -> None:
        scene, what = self._scene, self._scene.plan.job.workers.stragglers
        for slow in running.paces.stragglers():
            hand = scene.crew.hands.get(slow.member)
            if hand is None or slow.member in self._slow:
                continue
            self._slow.add(slow.member)
            said = (
                f"worker {slow.member} has needed {slow.factor:.1f} times as long as its peers for {slow.steps} steps"
            )
            scene.book.say("warning", f"{said} (workers.stragglers={what})")
            scene.book.write("straggler", member=slow.member, factor=round(slow.factor, 3), action=what)
            if what == "replace":
                hand.leaving = "slower than its peers"

    def lost(self, member: MemberId, error: BaseException) -> None:
        """A worker that was ready has died: in a view nobody needs to wait until its peers notice."""
        scene, running = self._scene, self._scene.running
        if running is not None and member in running.view.members:
            others = [m for m in running.view.members if m != member and m in scene.crew.hands]
            running.cut({m: scene.crew.hands[m].actor for m in others})
        else:
            scene.spending.lose(member)
            scene.words.pop(member, None)
            scene.crew.end(member, fit=False)

    def _kill(self, member: MemberId, why: str) -> None:
        scene, running = self._scene, self._scene.running
        if running is not None:
            running.killed[member] = why
        hand = scene.crew.hands.get(member)
        if hand is not None:
            ray.kill(hand.actor, no_restart=True)

    # After it ------------------------------------------------------------------------------------------------------

    def _judge(
        self, running: Running, errors: Mapping[MemberId, BaseException], broken: Mapping[MemberId, str]
    ) -> None:
        """What the loss means for the run."""
        scene = self._scene
        said: dict[MemberId, tuple[Cause, str]] = {m: (Cause.COLLECTIVE, text) for m, text in broken.items()}
        for member, error in errors.items():
            cause, text = cause_of(error)
            if cause is Cause.LOST and member in scene.killed:
                cause, text = Cause.ASKED, scene.killed.pop(member)
            elif cause is Cause.LOST and member in running.killed:
                cause, text = Cause.SILENT, running.killed[member]
            elif cause is Cause.LOST and (hand := scene.crew.hands.get(member)) is not None and hand.reclaimed:
                cause = Cause.PREEMPTED
            said[member] = cause, text
            if cause in (Cause.LOST, Cause.SILENT, *NEVER_CHARGED):
                scene.spending.lose(member)
                scene.words.pop(member, None)
                scene.crew.end(member, fit=False)
        scene.verdict = scene.charge(explain(said))

    def _note_change(
        self, running: Running, ends: Mapping[MemberId, ViewEnd], errors: Mapping[MemberId, BaseException]
    ) -> None:
        now = time.monotonic()
        moved = running.pulse.last_moved if running.killed else now
        seen = min(running.broken_at or now, moved)
        applied = max([running.tally.reported, *(e.step for e in ends.values())])
        lost = {m: "hang" if m in running.killed else "loss" for m in errors}
        if self._change is not None and self._change.after is not None:
            # That view broke before it got on: one change to people, with all that was lost in it.
            seen, lost = min(seen, self._change.seen_at), {**self._change.lost, **lost}
            applied, before = max(applied, self._change.applied), self._change.before
        else:
            before = running.view
        self._change = Change(before, seen, now, applied, lost)

    def _tell_change(self, step: int) -> None:
        """The first step after a change is committed: what it cost."""
        change, scene = self._change, self._scene
        if change is None or change.entered_at is None:
            return
        self._change = None
        if not change.lost:
            scene.resize_costs.append(change.idle_s)
        for entry in change.entries(step):
            scene.book.write(**entry)
            scene.book.say(entry["what"], describe(entry))


async def _already(error: BaseException) -> ViewEnd:
    raise error
