"""What the coordinator knows at one moment, and that as a `Situation` for the decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from shoal.coordinator.book import Book
from shoal.coordinator.crew import Crew
from shoal.coordinator.durable import Durable
from shoal.coordinator.plan import RunPlan
from shoal.coordinator.pooled import PoolSupply
from shoal.coordinator.running import Running
from shoal.coordinator.sizing import grown_course
from shoal.coordinator.spending import Spending
from shoal.coordinator.summary import Summary
from shoal.coordinator.supply import ClusterSupply, Supply
from shoal.membership.account import Account
from shoal.membership.commits import Progressed
from shoal.membership.course import Course, Outlook, SpentCourse
from shoal.membership.decisions import Situation, Standing
from shoal.membership.leasing import Due, Leasing
from shoal.membership.losses import Fail, Loss, Recover, after_loss
from shoal.membership.messages import Stored, ViewEnd
from shoal.membership.phases import Phase, move
from shoal.membership.recovery import Choice, Formed, sources
from shoal.membership.stragglers import Paces
from shoal.membership.view import MemberId, View
from shoal.optim.range_test import Trend
from shoal.tracking.ledger import Entry, last_view, read
from shoal.worker.outfit import Kind, Outfit


class Scene:
    """The run as it stands. Whoever changes it calls `changed`."""

    def __init__(
        self, plan: RunPlan, changed: Callable[[], None], gone: Callable[[MemberId, BaseException], None]
    ) -> None:
        self.plan = plan
        self.book = Book(plan)
        self.durable = Durable(plan)
        self.summary = Summary(plan.job_blob, lambda text: self.book.say("warning", text))
        self.crew = Crew(_supply(plan, changed), plan.job.workers, _outfit(plan), changed, gone)
        self.phase = Phase.STARTING
        self.low, self.high = plan.job.workers.min, plan.job.workers.max
        self.stop: str | None = None
        self.stop_saves = True
        """Whether a run that is asked to end is to be continued one day."""
        self.waiting = ""
        """What the run waits for."""
        self.finished = False
        self.verdict: Recover | Fail | None = None
        self.charged = 0
        self.number = last_view(self.book.path)
        """Of the newest view. Numbers go up over all launches of a run."""
        self.formed: list[Formed] = []
        self.words: dict[MemberId, ViewEnd] = {}
        """The last word of every living worker that was in a view."""
        self.account = Account(self.book.committed)
        self.running: Running | None = None
        self.paces = Paces()
        self.killed: dict[MemberId, str] = {}
        """Members that were killed on request, and by whom."""
        self.resize_costs: list[float] = []
        self.spending = Spending(plan.tariff, plan.job.task.tokens_per_sample)
        self.course = Course(plan.positions)
        self._trend = Trend(plan.divergence) if plan.divergence is not None else None

    def set_out(self, entries: Sequence[Entry], *, revived: bool = False) -> None:
        """Find the course of the run, with what was decided and used before; `entries`: of its ledger. `revived`: this
        launch goes on."""
        plan = self.plan
        self.spending.remember(entries, time.monotonic(), time.time(), revived=revived)
        decided = read(plan.replay)[0] if plan.replay is not None else entries
        after = plan.start_from.step if plan.start_from is not None else 0
        self.course = grown_course(plan, decided, after=after)

    def leasing(self, view: View, source: int, owes: Due | None) -> Leasing:
        """The leases of a view that goes on after step `source`."""
        return Leasing(view, self.plan.leasing(self.course), source + 1, owes=owes)

    def look_ahead(self, running: Running) -> None:
        """If the budget is used up by the doing: see how far it will reach."""
        unit, course = self.plan.job.budget.spent, self.course
        if unit is not None and isinstance(course, SpentCourse):
            used = self.spending.used(time.monotonic()).get(unit, 0.0)
            per_step = self.spending.per_step(unit, running.quickest_s or 0.0)
            course.outlook = Outlook(used, running.tally.reported, per_step)

    def write_decisions(self) -> None:
        """What was decided about steps: before any member hears of it, so that it stands whoever is lost then."""
        if decided := self.course.news():
            self.book.write("course", decided=decided)
        self.book.decided(self.course.sizes.decisions())

    def mind_budget(self, was_known: bool) -> None:
        """Say so if the budget was used up before the last step, which has just become known, could begin."""
        unit, course = self.plan.job.budget.spent, self.course
        if was_known or unit is None or course.last is None or not isinstance(course, SpentCourse):
            return
        budget, spent = getattr(self.plan.job.budget, unit), course.outlook.spent
        if spent >= budget:
            self.book.say(
                "warning",
                f"budget.{unit}={budget:g} was used up ({spent:.4g}) before step {course.last} could begin; that step "
                f"is done all the same, so that the schedule comes to its end",
            )

    def tend(self) -> None:
        """See what the workers that come and go cost."""
        self.spending.tend(self.book, self.crew.hands, time.monotonic(), time.time())

    def move(self, to: Phase) -> None:
        if to is not self.phase:
            self.phase = move(self.phase, to)

    @property
    def resize_cost_s(self) -> float:
        """Seconds without a commit that a change costs: the mean of those so far."""
        return sum(self.resize_costs) / len(self.resize_costs) if self.resize_costs else 1.0

    def situation(self) -> Situation:
        """For the decisions."""
        running, plan = self.running, self.plan
        choice = self._choice() if running is None else None
        step = choice.step if choice is not None else self.account.committed
        uneven = plan.job.workers.stragglers == "rebalance"
        speeds = self.paces.speeds() if uneven else {}
        ready = tuple(
            Standing(h.member, h.facts.node, h.leaving, h.stays_s, speeds.get(h.member))
            for h in self.crew.ready
            if h.facts
        )
        return Situation(
            ready=ready,
            starting=self.crew.starting,
            min=self.low,
            max=self.high,
            last=running.view if running is not None else self.formed[-1].view if self.formed else None,
            choice=choice,
            step=step,
            total_steps=self.course.expected,
            virtual_shards=plan.job.batch.virtual_shards,
            step_s=running.step_s if running is not None else None,
            resize_cost_s=self.resize_cost_s,
            stop=self.stop or plan.stretch_ended(step),
            finished=self.finished,
            saved=self.durable.reached == step or (self.stop is not None and not self.stop_saves),
            verdict=Fail(self.crew.lost) if self.crew.lost and not self.finished else self.verdict,
            settled=bool(self.formed) or self.crew.settled,
        )

    def _choice(self) -> Choice | None:
        latest = self.durable.latest
        return sources(
            self.formed,
            self.words.values(),
            sharded=self.plan.sharded,
            committed=self.account.committed,
            checkpoint=Stored(latest.step, latest.uri) if latest else None,
        )

    def charge(self, loss: Loss, then: str = "") -> Recover | Fail:
        """Judge a loss, write it down, and charge it to the run; `then`: what follows if the run goes on."""
        limit = self.plan.job.failures.max_failures
        verdict = after_loss(loss, charged=self.charged, max_failures=limit)
        self.book.write("loss", members=list(loss.members), cause=loss.cause.value, reason=verdict.reason)
        if isinstance(verdict, Recover):
            self.charged = verdict.charged
            self.book.say("loss", verdict.reason + then)
        return verdict

    def publish(self, progressed: Progressed) -> None:
        """What became final goes to the book and to storage."""
        if progressed.commits:
            self.spending.note_samples(progressed.commits[0].samples[0])
            for commit in progressed.commits:
                self.course.sizes.note(commit.step, commit.noise)
            self.book.commits(list(progressed.commits), self.spending.used(time.monotonic()))
            self.charged = 0  # a run that gets on is not ended by its losses
            self._mind_divergence([c.loss for c in progressed.commits])
        for evaluation in progressed.evaluations:
            self.book.evaluated(evaluation.step, self.summary.of(evaluation.means), evaluation.seconds)
        for written in progressed.written:
            self.durable.submit(written.step, written.parts, self.book, self.course.positions)

    def _mind_divergence(self, losses: Iterable[float]) -> None:
        """End the run if the plan says that it ends when its loss diverges, and it did."""
        reasons = [self._trend.hear(loss) for loss in losses] if self._trend is not None else []
        if self.stop is None and any(reasons):
            self.stop = next(reason for reason in reasons if reason)
            if self.running is not None:
                self.running.leasing.stop(self.stop)


def _supply(plan: RunPlan, changed: Callable[[], None]) -> Supply:
    if plan.pool is not None:
        return PoolSupply(plan.pool, plan, changed)
    return ClusterSupply(f"{plan.key}-", plan.job.workers, plan.coordinator, reading=plan.job.data.cpus)


def _outfit(plan: RunPlan) -> Outfit:
    return Outfit(
        run=plan.key,
        run_id=plan.run_id,
        log_format=plan.log_format,
        member="",
        job=plan.job_blob,
        token=plan.token,
        kind=Kind.of(plan.job),
        checkpoint_uri=plan.checkpoint_uri,
        export_uri=plan.export_uri,
        validation_samples=plan.validation_samples,
        mixture=plan.mixture,
    )
