"""The glue between a simulated world and the decisions of `shoal.membership`, as thin as it can be.

It does what the real coordinator does: it starts workers, gives orders, hears reports, and asks what comes next. It is
lost and made anew, from the ledger and from what workers still know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from shoal.membership.account import Account
from shoal.membership.buddies import buddies
from shoal.membership.commits import Progressed, Tally
from shoal.membership.course import Outlook, SpentCourse
from shoal.membership.decisions import Conclude, Form, Situation, Standing, Wait, change_wanted, next_view
from shoal.membership.leasing import Leasing, horizon
from shoal.membership.losses import Cause, Fail, Recover, after_loss, explain
from shoal.membership.messages import Grant, Reports, Stored, ViewEnd, ViewOrder
from shoal.membership.phases import Phase, move
from shoal.membership.recovery import Choice, Formed, Remembered, sources
from shoal.membership.view import MemberId, View
from tests.support.simulated_workers import Worker
from tests.support.simulated_world import World

SILENCE = 12.0
"""No word for so long: hung."""
OUT = 6.0
"""Who is told to leave a broken view has so long."""
START = 15.0
SETTLE = 8.0


class Coordinator:
    """One incarnation."""

    def __init__(self, world: World, incarnation: int) -> None:
        world.coordinator = self
        self.world, self.incarnation, self.ledger = world, incarnation, world.ledger
        self.phase = Phase.STARTING
        self.account = Account(len(self.ledger.commits))
        self.course = world.scenario.course(self.ledger.progress)
        self.plan = replace(world.plan, course=self.course)
        self.view: View | None = None
        self.leasing: Leasing | None = None
        self.out: set[MemberId] = set()
        """Members of the view that have not returned from it."""
        self.errors: dict[MemberId, tuple[Cause, str]] = {}
        self.words: dict[MemberId, ViewEnd] = {}
        self.verdict: Recover | Fail | None = None
        self.charged = 0
        self.settled = bool(self.ledger.formed)
        self.heard: dict[MemberId, float] = {}
        self.seen: dict[MemberId, float] = {}
        self.broken_at = world.now
        self.buried = {w.member for w in world.workers.values() if not w.alive}
        """Those of whose death it knows."""
        self._again(SETTLE, self._settle)
        self._again(0.0, self._watch)
        if self.ledger.formed:
            self._adopt()
        else:
            self._hire()

    def _again(self, delay: float, do: Callable[[], None]) -> None:
        """`do` later, if this incarnation still lives."""

        def act() -> None:
            if self.world.coordinator is self:
                do()

        self.world.after(delay, act)

    # What workers and the world say --------------------------------------------------------------------------------

    def sync(self, reports: Reports) -> Grant:
        leasing, tally = self.leasing, self.account.tally
        if leasing is None or tally is None or reports.view != leasing.view.number:
            return Grant(incarnation=self.incarnation)
        self.heard[reports.member] = self.world.now
        self._record(self.account.add(reports))
        if isinstance(self.course, SpentCourse):
            self.course.outlook = Outlook(self.world.now, tally.reported, 1.0)
        leasing.extend(horizon(tally.reported, 1.0, ahead_s=2.0), self.world.scenario.snapshot_every)
        self.ledger.progress.update(self.course.news())
        self._note_end(leasing)
        return Grant(leasing.take(reports.member), leasing.end, self.account.committed, self.incarnation)

    def on_news(self) -> None:
        """A worker is ready, or is about to leave."""
        self._decide()

    def on_end(self, end: ViewEnd) -> None:
        if self.view is None or end.view != self.view.number or end.member not in self.out:
            return
        self.out.discard(end.member)
        self.words[end.member] = end
        if end.broken is not None:
            self.errors.setdefault(end.member, (Cause.COLLECTIVE, end.broken))
            self._break()
        self._finish_view()

    def on_death(self, member: MemberId) -> None:
        self.buried.add(member)
        self.words.pop(member, None)
        if self.view is not None and member in self.view.members:
            worker = self.world.workers[member]
            cause = Cause.PREEMPTED if worker.leaving else Cause.SILENT if worker.hung else Cause.LOST
            self.errors[member] = (cause, "")
            self.out.discard(member)
            self._break()
            self._finish_view()
        self._decide()

    def on_stop(self, reason: str) -> None:
        self.ledger.stop = self.ledger.stop or reason
        if self.leasing is not None:
            self.leasing.stop(reason)
        self._decide()

    # Decisions -----------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        if self.world.outcome is not None:
            return
        self._hire()
        if self.view is not None:
            self._consider()
            return
        choice = self._choice()
        decision = next_view(self._situation(choice))
        if choice is not None:
            self.world.check_choice(choice, list(self.words.values()))
        if isinstance(decision, Form):
            assert choice is not None
            self._form(decision, choice)
        elif isinstance(decision, Wait):
            self.phase = move(self.phase, Phase.WAITING)
            self._dismiss(())
        else:
            self._conclude(decision, choice)

    def _choice(self) -> Choice | None:
        saved = max(self.ledger.checkpoints, default=None)
        return sources(
            self.ledger.formed,
            self.words.values(),
            sharded=self.world.sharded,
            committed=self.account.committed,
            checkpoint=None if saved is None else Stored(saved, f"step-{saved}"),
        )

    def _situation(self, choice: Choice | None) -> Situation:
        world, ledger = self.world, self.ledger
        least, most = ledger.limits
        total = self.course.last
        ready = [w for w in self._there() if w.ready and w.member not in self.errors]
        step = choice.step if choice else 0
        return Situation(
            ready=tuple(Standing(w.member, w.node, w.leaving, speed=w.speed) for w in ready),
            starting=sum(not w.ready for w in self._there()),
            min=least,
            max=most,
            last=self.view or (ledger.formed[-1].view if ledger.formed else None),
            choice=choice,
            step=self.account.committed,
            total_steps=self.course.expected,
            virtual_shards=world.scenario.virtual_shards,
            step_s=1.0 if ledger.commits else None,
            resize_cost_s=1.0,
            stop=ledger.stop,
            finished=total is not None
            and step == total == self.account.committed
            and world.exported
            and total in ledger.checkpoints
            and (not world.plan.can_evaluate or total in ledger.evaluations),
            saved=step in ledger.checkpoints,
            verdict=self.verdict,
            settled=self.settled,
        )

    def _consider(self) -> None:
        """Whether the running view is to be changed."""
        if self.view is None or self.leasing is None or self.leasing.end is not None or self.errors:
            return
        change = change_wanted(self._situation(None))
        if change is not None:
            self.world.note(f"change: {change.reason}")
            keepers = buddies(self.view.members, self._nodes(), change.leaves)
            self.leasing.change(change.reason, keepers=keepers, checkpoint=change.checkpoint)

    def _form(self, form: Form, choice: Choice) -> None:
        world, ledger = self.world, self.ledger
        self.phase = move(self.phase, Phase.FORMING)
        number = len(ledger.formed) + 1
        view = View(number, form.members, form.cuts)
        world.note(f"view {number} {'+'.join(form.members)} after step {form.source.step}: {form.reason}")
        saving = ledger.stop is not None or "for one view more" in form.reason
        assert view.size >= ledger.limits[0] or saving, f"{view} is smaller than {ledger.limits[0]}"
        owes = self.account.owes(form.source.step)
        before = self.account.committed
        self._enter(view)
        self.leasing = Leasing(view, self.plan, form.source.step + 1, owes=owes)
        self.account.begin(self._tally(self.leasing))
        assert (choice.again is not None) == (self.account.committed < before), f"{choice} after step {before}"
        if choice.again is not None:
            world.roll_back(self.account.committed)
        ledger.formed.append(Formed(view, form.source.step))
        ledger.owed.append(self.leasing.owes)
        if ledger.stop is not None:
            self.leasing.stop(ledger.stop)
        keepers = buddies(view.members, self._nodes(), self._leaving()) if world.sharded else {}
        due = self.leasing.owes
        for member in view.members:
            order = ViewOrder(view, member, "", form.source, keepers.get(member), due.evaluate, due.checkpoint)
            world.workers[member].later(0.0, 0.3, world.workers[member].run_view, order)
        self._dismiss(view.members)
        for pick in world.kill_forming:
            victim = world.workers[view.members[pick % view.size]]
            world.after(world.random.uniform(0.0, 1.5), partial(world.kill, victim, "killed while the view forms"))
        world.kill_forming.clear()

    def _enter(self, view: View) -> None:
        self.view, self.out = view, set(view.members)
        self.errors = {}
        self.heard = dict.fromkeys(view.members, self.world.now)
        self.settled = True

    def _conclude(self, decision: Conclude, choice: Choice | None) -> None:
        self.world.note(f"{decision.status}: {decision.reason}")
        if decision.status == "stopped" and choice is not None and isinstance(choice.state, Remembered):
            assert choice.step == 0 or choice.step in self.ledger.checkpoints, "stopped without saving what is there"
        self.phase = move(self.phase, Phase.DONE)
        self.world.outcome = decision

    # The view ------------------------------------------------------------------------------------------------------

    def _record(self, final: Progressed) -> None:
        for commit in final.commits:
            robust = self.view is not None and self.view.size > 1 and self.buried.isdisjoint(self.view.members)
            self.world.commit(commit, self._there(), robust=robust)
            self.charged = 0
        for evaluation in final.evaluations:
            self.world.evaluated(evaluation.step)
        for written in final.written:
            said = [p.scalars for p in written.parts]
            self.world.publish(written.step, [p["state"] for p in said], [p["view"] for p in said])
        assert self.account.committed == len(self.ledger.commits)

    def _note_end(self, leasing: Leasing) -> None:
        if self.phase is Phase.FORMING:
            self.phase = move(self.phase, Phase.RUNNING)
        if leasing.end is not None and self.phase is Phase.RUNNING:
            self.phase = move(self.phase, Phase.ENDING)

    def _break(self) -> None:
        """Somebody is out too early: cut all others loose."""
        if self.view is None:
            return
        self.broken_at = self.world.now
        for member in self.view.members:
            worker = self.world.workers[member]
            worker.later(0.0, 0.3, worker.cut, self.view.number)

    def _finish_view(self) -> None:
        if self.view is None or self.out:
            return
        ends = [e for e in self.words.values() if e.view == self.view.number]
        self._record(self.account.close(ends))
        for member, word in self.words.items():
            worker = self.world.workers[member]
            if worker.runs:
                self.words[member] = replace(word, held=tuple(worker.held))
        self.phase = move(self.phase, Phase.DECIDING)
        self.verdict = None
        if self.errors:
            loss = explain(self.errors)
            failures = self.world.scenario.max_failures
            self.verdict = after_loss(loss, charged=self.charged, max_failures=failures)
            if isinstance(self.verdict, Recover):
                self.charged = self.verdict.charged
        self.view, self.leasing, self.errors = None, None, {}
        self._decide()

    # Workers -------------------------------------------------------------------------------------------------------

    def _hire(self) -> None:
        there = [w for w in self._there() if w.leaving is None]
        for _ in range(min(self.world.capacity, self.ledger.limits[1]) - len(there)):
            self.world.start_worker()

    def _dismiss(self, members: Iterable[MemberId]) -> None:
        """End the leavers that are in no view."""
        told = {held for word in self.words.values() for held in word.held}
        for worker in self._there():
            if worker.leaving is not None and worker.member not in members:
                self.world.check_farewell(worker, self._there(), told)
                self.world.kill(worker, f"left in good order ({worker.leaving})")
                self.buried.add(worker.member)
                self.words.pop(worker.member, None)

    def _watch(self) -> None:
        """Find who hangs: whoever does not start, or does not speak, or does not come out of a broken view."""
        self._again(1.0, self._watch)
        now = self.world.now
        for worker in self.world.alive():
            if not worker.ready and now - self.seen.setdefault(worker.member, now) > START:
                self.world.kill(worker, "did not start in time")
        if self.view is not None:
            late = now - self.broken_at > OUT if self.errors else False
            mute = {m for m in self.out if now - self.heard.get(m, now) > SILENCE}
            for member in sorted(self.out if late else mute):
                self.world.kill(self.world.workers[member], "silent, or stuck in a broken view")
        self._decide()

    def _settle(self) -> None:
        self.settled = True
        self._decide()

    def _there(self) -> list[Worker]:
        return [w for w in self.world.workers.values() if w.member not in self.buried]

    def _nodes(self) -> dict[MemberId, str]:
        return {w.member: w.node for w in self.world.alive()}

    def _leaving(self) -> set[MemberId]:
        return {w.member for w in self.world.alive() if w.leaving is not None}

    def _tally(self, leasing: Leasing) -> Tally:
        return Tally(
            leasing.view,
            first_step=leasing.first_step,
            course=self.course,
            sharded=self.world.sharded,
            last_due=leasing.last_due,
        )

    # After a restart -----------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Rebuild everything from the ledger and from what the workers know."""
        world, ledger = self.world, self.ledger
        known: list[Worker] = [w for w in world.alive() if w.ready]
        for worker in known:
            if not worker.hung and worker.progress[0] == ledger.formed[-1].view.number:
                self.course.restore(worker.progress[1].items())
        leasings = [
            Leasing(formed.view, self.plan, formed.source_step + 1, owes=owes)
            for formed, owes in zip(ledger.formed, ledger.owed, strict=True)
        ]
        final = self.account.adopt(
            [self._tally(leasing) for leasing in leasings],
            [end for w in known if not w.hung for end in w.ends.values()],
            evaluated=ledger.evaluations,
            saved=ledger.checkpoints,
        )
        self._record(final)
        self.leasing = leasings[-1]
        view = ledger.formed[-1].view
        for worker in known:
            if worker.ends and not worker.hung:
                self.words[worker.member] = worker.ends[max(worker.ends)]
        self._enter(view)
        self.phase = move(self.phase, Phase.RUNNING)
        self._take_over(view)

    def _take_over(self, view: View) -> None:
        """Go on with the last view if all of its members are well in it; else it counts as broken."""
        assert self.leasing is not None
        given, snapshots, told = {}, set(), []
        for member in view.members:
            worker = self.world.workers[member]
            # Also what those were told who have left the view since then: it ends there for all.
            if worker.runs and worker.told is not None and worker.told[0] == view.number:
                told.append(worker.told[1])
            if not worker.alive:
                self.errors[member] = (Cause.LOST, "lost while there was no coordinator")
                self.out.discard(member)
            elif worker.life is not None and worker.life.view == view:
                given[member] = worker.life.granted
                snapshots |= {s for s, x in worker.life.leases.items() if x.snapshot}
            elif view.number in worker.ends:
                self.out.discard(member)
                given[member] = worker.ends[view.number].step
                if worker.ends[view.number].broken is not None:
                    self.errors[member] = (Cause.COLLECTIVE, "broke while there was no coordinator")
            elif not worker.hung:
                self.errors[member] = (Cause.COLLECTIVE, "was never ordered into the view")
                self.out.discard(member)
        self.leasing.resume_at(given, snapshots=snapshots, ends=told)
        if self.ledger.stop is not None:
            self.leasing.stop(self.ledger.stop)
        if self.errors:
            self._break()
        self._finish_view()
        self._decide()
