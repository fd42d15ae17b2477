"""The world of a simulated run: time, machines, messages, the ledger, and the promises that must hold in it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from shoal.membership.commits import Commit
from shoal.membership.course import Course, SpentCourse
from shoal.membership.decisions import Conclude
from shoal.membership.leasing import Due, Plan
from shoal.membership.messages import Fresh, Held, InMemory, Source, Stored, ViewEnd
from shoal.membership.recovery import Choice, Formed, Remembered
from shoal.membership.view import Lease, MemberId, View
from shoal.positions import Positions
from tests.support.simulated_workers import Group, State, Worker

if TYPE_CHECKING:
    from tests.support.simulated_coordinator import Coordinator


class Event(NamedTuple):
    """Something happens at a time; `pick` chooses whom it hits among those that it can hit."""

    at: float
    kind: str
    pick: int = 0


@dataclass(frozen=True)
class Scenario:
    """One history, up to the delays, which follow from `seed`."""

    seed: int
    sharded: bool
    least: int
    most: int
    total_steps: int
    events: tuple[Event, ...]
    virtual_shards: int = 8
    snapshot_every: int = 1
    checkpoint_every: int | None = 5
    evaluate_every: int | None = 3
    max_failures: int = -1
    nodes: int = 3
    uneven: bool = False
    """Workers are of different speed, and the job divides its virtual shards accordingly."""
    budget: float | None = None
    """Time units after which the run ends, in the place of `total_steps`."""

    def course(self, decided: Mapping[int, float]) -> Course:
        """As a coordinator makes it whose ledger says that so much was `decided`."""
        if self.budget is None:
            return Course(Positions.even(self.virtual_shards * 2, self.total_steps))
        endless = Positions.even(self.virtual_shards * 2, 1 << 32)
        return SpentCourse(endless, self.budget, after=0, decided=decided)

    def plan(self) -> Plan:
        return Plan(
            course=self.course({}),
            virtual_shards=self.virtual_shards,
            evaluate_every=self.evaluate_every,
            checkpoint_every=self.checkpoint_every,
            export=True,
            can_evaluate=self.evaluate_every is not None,
            snapshot=self.sharded,
        )


@dataclass
class Ledger:
    """What outlives the coordinator."""

    formed: list[Formed] = field(default_factory=list)
    owed: list[Due] = field(default_factory=list)
    commits: list[int] = field(default_factory=list)
    """The view of each committed step."""
    progress: dict[int, float] = field(default_factory=dict)
    """Of all steps that were decided about."""
    evaluations: set[int] = field(default_factory=set)
    checkpoints: dict[int, State] = field(default_factory=dict)
    stop: str | None = None
    limits: tuple[int, int] = (1, 1)
    lost: int = 0
    """Committed steps that were rolled back."""


class World:
    """Time, machines, the network, the ledger, and the promises."""

    def __init__(self, scenario: Scenario, make_coordinator: Callable[[World, int], object]) -> None:
        """`make_coordinator` puts itself into `coordinator`, and is given its incarnation."""
        self._make_coordinator = make_coordinator
        self.scenario, self.plan, self.sharded = scenario, scenario.plan(), scenario.sharded
        self.random = Random(scenario.seed)
        self.now = 0.0
        self.log: list[str] = []
        self.ledger = Ledger(limits=(scenario.least, scenario.most))
        self.coordinator: Coordinator | None = None
        self.workers: dict[MemberId, Worker] = {}
        self.capacity = scenario.most
        self.kill_forming: list[int] = []
        self.exported = False
        self.outcome: Conclude | None = None
        self.made_steps: set[tuple[int, int]] = set()
        """(view, step) of every step that was computed."""
        self.told: dict[tuple[int, int], float] = {}
        """(view, step) -> progress with which it was computed."""
        self.appliers: dict[tuple[int, int], list[tuple[Worker, int]]] = {}
        """Who has applied it, and the number of virtual shards of each."""
        self.redone = 0
        """Steps that somebody had applied and that were computed again."""
        self._most_applied = 0
        self._groups: dict[int, Group] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._incarnation = 0

    # Time and messages ---------------------------------------------------------------------------------------------

    def after(self, delay: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._order), do))

    def tell(self, say: Callable[[Coordinator], None]) -> None:
        """A message to the coordinator; lost if there is none."""
        if self.coordinator is not None:
            say(self.coordinator)

    def run(self, until: float) -> None:
        while self._heap and self.outcome is None:
            at, _, do = heapq.heappop(self._heap)
            if at > until:
                break
            self.now = at
            do()

    def note(self, text: str) -> None:
        self.log.append(f"{self.now:7.2f} {text}")

    # Machines ------------------------------------------------------------------------------------------------------

    def alive(self) -> list[Worker]:
        return [w for w in self.workers.values() if w.alive]

    def start_worker(self) -> None:
        number = len(self.workers)
        worker = Worker(self, f"w{number}", f"n{number % self.scenario.nodes}")
        worker.speed = self.random.choice((None, 0.3, 1.0, 1.1)) if self.scenario.uneven else None
        self.workers[worker.member] = worker

        def ready() -> None:
            worker.ready = True
            self.tell(lambda coordinator: coordinator.on_news())

        worker.later(0.5, 4.0, ready)

    def kill(self, worker: Worker, why: str) -> None:
        if not worker.alive:
            return
        worker.alive = False
        self.note(f"{worker.member} dies: {why}")
        if worker.life is not None:
            worker.life.over = True
            worker.life.group.lost(worker.member)
        self.after(
            self.random.uniform(0.1, 1.0), lambda: self.tell(lambda coordinator: coordinator.on_death(worker.member))
        )

    def lose_coordinator(self) -> None:
        if self.coordinator is None:
            return
        self.note("the coordinator dies")
        self.coordinator = None

        def back() -> None:
            self.start()

        self.after(self.random.uniform(0.5, 5.0), back)

    def start(self) -> None:
        self._incarnation += 1
        self._make_coordinator(self, self._incarnation)

    def group(self, view: View) -> Group:
        return self._groups.setdefault(view.number, Group(self, view))

    # What members do together, and what must hold of it ------------------------------------------------------------

    def made(self, view: View, leases: Sequence[Lease]) -> None:
        """All members of `view` have computed a step."""
        step = leases[0].step
        assert view.number == self.ledger.formed[-1].view.number, f"{view} trains after a later view was formed"
        assert [m.view for m in leases] == [view.number] * view.size
        start, stop = self.plan.course.of(step)
        ends = [start, *(m.stop for m in leases)]
        assert [m.start for m in leases] == ends[:-1], f"step {step} of {view}: samples not contiguous: {leases}"
        assert ends[-1] == stop, f"step {step} of {view}: samples missing: {leases}"
        assert len({(m.evaluate, m.checkpoint, m.snapshot) for m in leases}) == 1, f"flags differ: {leases}"
        assert all(m.start < m.stop for m in leases), f"step {step} of {view}: a member without work: {leases}"
        progress = leases[0].progress
        assert len({m.progress for m in leases}) == 1, f"step {step} of {view}: progress differs: {leases}"
        before = self.told.get((view.number, step - 1), progress[0])
        assert before == progress[0] <= progress[1] <= 1.0, f"step {step} of {view} goes from {before} to {progress}"
        self.told[view.number, step] = progress[1]
        self.made_steps.add((view.number, step))
        self.redone += step <= self._most_applied

    def applied(self, worker: Worker, state: State, shards: int) -> None:
        self._most_applied = max(self._most_applied, len(state))
        self.appliers.setdefault((state[-1], len(state)), []).append((worker, shards))

    def source_state(self, source: Source) -> State:
        """The state that a view takes over; it must be whole, of one making, and go on from what is committed."""
        committed = tuple(self.ledger.commits)
        if isinstance(source, Fresh):
            assert not committed, "the initial weights after commits"
            return ()
        if isinstance(source, Stored):
            state = self.ledger.checkpoints[source.step]
            assert state == committed, "the checkpoint is not the committed state"
            return state
        state = self._gathered(source) if self.sharded else self._replica(source)
        assert len(state) == source.step, f"the state is of step {len(state)}, not of {source.step}"
        assert state[: len(committed)] == committed, f"state {state} does not continue the commits {committed}"
        return state

    def _gathered(self, source: InMemory) -> State:
        names = [(m, Held(o, source.view, source.step)) for m, owners in source.gives for o in owners]
        parts = [self.workers[m].held[name] for m, name in names]
        assert len({(p.state, p.view) for p in parts}) == 1, f"parts of different states are put together: {parts}"
        owners = [name.owner for _, name in names]
        assert sorted(owners) == sorted(parts[0].view.members), f"not every part once: {owners} of {parts[0].view}"
        return parts[0].state

    def _replica(self, source: InMemory) -> State:
        states = {self.workers[m].state for m, _ in source.gives}
        assert len(states) == 1, f"givers differ: {states}"
        (state,) = states
        assert state is not None, "a giver has no state"
        return state

    # The ledger ----------------------------------------------------------------------------------------------------

    def commit(self, commit: Commit, workers: Sequence[Worker], *, robust: bool) -> None:
        """`workers`: all that are there, as far as the coordinator knows; `robust`: none of several members is lost."""
        step, view = commit.step, commit.view
        assert step == len(self.ledger.commits) + 1, f"step {step} is committed after {len(self.ledger.commits)}"
        assert (view, step) in self.made_steps, f"step {step} is committed, but view {view} never did it"
        told, before = self.told[view, step], self.ledger.progress.get(step - 1, 0.0)
        assert commit.progress == told, f"{commit} was computed at progress {told}"
        assert before <= told, f"{commit} after progress {before}"
        assert before < 1.0, f"{commit} after the end of the budget"
        self.ledger.progress[step] = told  # of a budget of steps nobody decides
        self.ledger.commits.append(view)
        known = sum(shards for worker, shards in self.appliers[view, step] if worker.runs)
        assert commit.covered >= known, f"{commit} covers less than what those who live could tell"
        whole = commit.covered == self.scenario.virtual_shards
        assert bool(commit.samples_digest) == whole, f"{commit}: a digest of a part, or none of the whole"
        for lost in workers if robust else ():
            left = [w for w in workers if w is not lost]
            assert self.remembered(left) >= step, f"{commit} would be lost with {lost.member}"

    def remembered(self, workers: Sequence[Worker], told: set[Held] | None = None) -> int:
        """The last step of the best state that continues the commits and that these workers hold whole; -1: none."""
        committed = tuple(self.ledger.commits)
        return max(
            (len(s) for s in self._states(workers, told) if s[: len(committed)] == committed[: len(s)]), default=-1
        )

    def check_farewell(self, leaver: Worker, workers: Sequence[Worker], told: set[Held]) -> None:
        """Nothing that the coordinator was `told` of is lost when `leaver` goes in good order."""
        before = self.remembered(workers, told)
        after = self.remembered([w for w in workers if w is not leaver])
        durable = max(self.ledger.checkpoints, default=0)
        assert before <= max(after, durable) or before < len(self.ledger.commits) or leaver.hung, (
            f"{leaver.member} takes the state of step {before} with it; the others hold step {after}"
        )

    def _states(self, workers: Sequence[Worker], told: set[Held] | None = None) -> set[State]:
        """All states that these workers hold whole (as far as `told`) and that are part of the run."""
        if not self.sharded:
            states = [(w.state, w.made_in or 0) for w in workers]
            return {s for s, view in states if s is not None and not self._void(view, len(s))}
        found: dict[tuple[State, View], set[MemberId]] = {}
        for worker in workers:
            for held, part in worker.held.items():
                if (told is None or held in told) and not self._void(held.view, held.step):
                    found.setdefault((part.state, part.view), set()).add(held.owner)
        return {state for (state, view), owners in found.items() if owners >= set(view.members)}

    def evaluated(self, step: int) -> None:
        assert step <= len(self.ledger.commits), f"the evaluation of step {step} is told before the step is committed"
        assert step not in self.ledger.evaluations, f"the evaluation of step {step} is told twice"
        self.ledger.evaluations.add(step)

    def publish(self, step: int, states: Sequence[State], views: Sequence[View]) -> None:
        assert step <= len(self.ledger.commits), f"the checkpoint of step {step} is made before the step is committed"
        assert len(set(states)) == 1, f"a checkpoint of different states: {states}"
        assert {v.number for v in views} == {views[0].number}, "a checkpoint of parts of different views"
        assert len(views) == views[0].size, f"parts of {views[0]} are missing"
        assert states[0] == tuple(self.ledger.commits[:step]), f"the checkpoint {states[0]} is not what was committed"
        self.ledger.checkpoints[step] = states[0]

    def roll_back(self, step: int) -> None:
        """The view that is formed goes on from before the last commit."""
        ledger = self.ledger
        self.note(f"steps {step + 1} to {len(ledger.commits)} are run again")
        ledger.lost += len(ledger.commits) - step
        del ledger.commits[step:]
        ledger.evaluations = {s for s in ledger.evaluations if s <= step}
        self._most_applied = min(self._most_applied, step)

    def check_choice(self, choice: Choice, ends: Sequence[ViewEnd]) -> None:
        """If the ends tell of a whole state that continues the commits, the choice must use the best such."""
        committed = tuple(self.ledger.commits)
        told = {held for end in ends for held in end.held}
        able = self._states([self.workers[end.member] for end in ends], told)
        best = max((len(s) for s in able if s[: len(committed)] == committed), default=None)
        if best is not None:
            assert isinstance(choice.state, Remembered), f"{choice}, but memory holds step {best}"
            assert choice.step == best, f"{choice}, but memory holds step {best}"

    def _void(self, view: int, step: int) -> bool:
        return any(f.source_step < step for f in self.ledger.formed if f.view.number > view)
