"""Workers of a simulated run: they obey orders and leases with random delays, and die, hang and leave when told to.

The training state is modelled as its history: the view in which each of its steps was made. Two states are equal only
if they were made the same way, so parts of different states never pass for one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from shoal.membership.leasing import End
from shoal.membership.messages import (
    Entered,
    EvaluationReport,
    Grant,
    Held,
    Reports,
    ShardWritten,
    SnapshotKept,
    StepReport,
    ViewEnd,
    ViewOrder,
)
from shoal.membership.view import Lease, MemberId, View

if TYPE_CHECKING:
    from tests.support.simulated_world import World

GIVE_UP = 10.0
"""At the end of a view a member waits no longer than this for its last snapshot to arrive."""

State = tuple[int, ...]
"""The view in which each step was made; its length is the number of steps."""


@dataclass(frozen=True)
class Part:
    """One owner's part of a state, cut as the members of `view` hold it."""

    state: State
    view: View


class Worker:
    """One process. `state` is the live one of a replicated engine."""

    def __init__(self, world: World, member: MemberId, node: str) -> None:
        self.world, self.member, self.node = world, member, node
        self.alive, self.hung, self.ready = True, False, False
        self.leaving: str | None = None
        self.speed: float | None = None
        self.state: State | None = None
        self.made_in: int | None = None
        self.held: dict[Held, Part] = {}
        self.ends: dict[int, ViewEnd] = {}
        self.life: Life | None = None
        self.told: tuple[int, End] | None = None
        """The end of the last view of which it was told one."""
        self.progress: tuple[int, dict[int, float]] = (0, {})
        """The last view, and the progress of the steps that were leased to it there."""
        self.cuts: set[int] = set()
        self.last_view = 0

    @property
    def runs(self) -> bool:
        return self.alive and not self.hung

    def later(self, least: float, most: float, do: Callable[..., None], *args: Any) -> None:
        """`do` after a random delay, if this process still runs then."""

        def act() -> None:
            if self.runs:
                do(*args)

        self.world.after(self.world.random.uniform(least, most), act)

    def run_view(self, order: ViewOrder) -> None:
        number = order.view.number
        if number <= self.last_view:
            return
        self.last_view = number
        assert self.life is None, f"{self.member} is ordered into view {number} while it is in {self.life}"
        self.life, self.progress = Life(self, order), (number, {})
        if number in self.cuts:
            self.life.leave("cut")
        else:
            self.later(0.0, 0.5, self.life.arrive)

    def cut(self, number: int) -> None:
        self.cuts.add(number)
        if self.life is not None and self.life.order.view.number == number:
            self.life.leave("cut")

    def keep(self, held: Held, part: Part, then: Callable[[], None]) -> None:
        if self.runs:
            self.held[held] = part
            then()


class Life:
    """One worker in one view."""

    def __init__(self, worker: Worker, order: ViewOrder) -> None:
        self.worker, self.order, self.world = worker, order, worker.world
        self.view = order.view
        self.group = self.world.group(order.view)
        self.over = False
        self.state: State | None = None
        self.leases: dict[int, Lease] = {}
        self.granted = order.source.step
        self.end: End | None = None
        self.steps: list[StepReport] = []
        self.evaluations: list[EvaluationReport] = []
        self.written: list[ShardWritten] = []
        self.snapshots: list[SnapshotKept] = []
        self.entered: Entered | None = None
        self.busy = True
        self.open = 0  # snapshots and checkpoints on their way
        self.ending = False
        worker.later(0.0, 0.6, self.sync)

    def __repr__(self) -> str:
        return f"view {self.view.number}"

    # The state and the steps ---------------------------------------------------------------------------------------

    def arrive(self) -> None:
        if not self.over:
            self.group.enter(self)

    def take(self, state: State) -> None:
        """The state has come; whoever had it before has it still."""
        if self.over:
            return
        self.state, self.entered, self.busy = state, Entered(0.1, 0.1), False
        if not self.world.sharded:
            self.worker.state, self.worker.made_in = state, self.view.number
        if self.order.evaluate:
            self._evaluate()
        if self.order.checkpoint:
            self._write()
        self.go_on()

    def go_on(self) -> None:
        """Begin the next step, or do what the view's end asks for."""
        if self.over or self.busy or self.state is None:
            return
        step = len(self.state) + 1
        if step in self.leases:
            self.busy = True
            self.worker.later(0.2, 1.0, self.group.reach, step, self)
        elif self.end is not None and self.end.step == len(self.state):
            self._finish(self.end)

    def apply(self, lease: Lease) -> None:
        """The reduction is done: update the state, report, do what the lease says."""
        if self.over:
            return
        assert self.state is not None
        self.busy, self.state = False, (*self.state, self.view.number)
        if not self.world.sharded:
            self.worker.state, self.worker.made_in = self.state, self.view.number
        covered = lease.shards[1] - lease.shards[0]
        self.world.applied(self.worker, self.state, covered)
        self.steps.append(
            StepReport(
                lease.step,
                ((covered, 1.0),),
                1.0,
                0.1,
                1.0,
                samples=f"{lease.start}-{lease.stop};",
                progress=lease.progress[1],
            )
        )
        if lease.snapshot:
            self._snapshot(self.order.buddy)
        if lease.evaluate:
            self._evaluate()
        if lease.checkpoint:
            self._write()
        self.go_on()

    def _evaluate(self) -> None:
        assert self.state is not None
        self.evaluations.append(EvaluationReport(len(self.state), 1, {"loss": 1.0}, 0.1))

    def _write(self) -> None:
        def done() -> None:
            self.written.append(ShardWritten(len(state), scalars={"state": state, "view": self.view}))
            self._done()

        assert self.state is not None
        state = self.state
        self.open += 1
        self.worker.later(0.1, 2.0, done)

    def _snapshot(self, buddy: MemberId | None) -> None:
        assert self.state is not None
        step, me, number = len(self.state), self.worker.member, self.view.number
        held, part = Held(me, number, step), Part(self.state, self.view)
        self.worker.held[held] = part

        def kept() -> None:
            self.snapshots.append(SnapshotKept(step))
            self._done()

        self.open += 1
        if buddy is None:
            kept()
        else:
            # What is on its way arrives even if the sender is gone by then.
            answered = partial(self.worker.later, 0.0, 0.2, kept)
            keep = partial(self.world.workers[buddy].keep, held, part, answered)
            self.world.after(self.world.random.uniform(0.0, 1.5), keep)

    def _done(self) -> None:
        self.open -= 1
        self.go_on()

    def _finish(self, end: End) -> None:
        assert self.state is not None
        if not self.ending:
            self.ending = True
            self.open += 1  # not done before all of it is begun
            step = len(self.state)
            if end.evaluate and step not in [e.step for e in self.evaluations]:
                self._evaluate()
            me, usual = self.worker.member, self.order.buddy
            keeper = dict(end.keepers).get(me, usual)
            # A snapshot that there is already lies with the usual buddy, who may be leaving.
            if end.snapshot and (keeper != usual or Held(me, self.view.number, step) not in self.worker.held):
                self._snapshot(keeper)
            if end.checkpoint:
                self._write()
            self.worker.later(GIVE_UP, GIVE_UP, self.leave, None)
            self.open -= 1
        if self.open == 0 and not self.over:
            if end.export and self.view.rank(self.worker.member) == 0:
                self.world.exported = True
            self.leave(None)

    def leave(self, broken: str | None) -> None:
        """Out of the view; the process goes on, and the coordinator hears of it if there is one."""
        if self.over:
            return
        self.over = True
        worker = self.worker
        worker.life = None
        end = ViewEnd(
            member=worker.member,
            view=self.view.number,
            step=len(self.state or worker.state or ()),
            broken=broken,
            stale=worker.state is None,
            held=tuple(worker.held),
            made_in=worker.made_in,
            reports=self._reports(),
        )
        worker.ends[self.view.number] = end
        worker.later(0.0, 0.2, self.world.tell, lambda coordinator: coordinator.on_end(end))

    # The line to the coordinator -----------------------------------------------------------------------------------

    def sync(self) -> None:
        """Say all that is not known to be committed, again and again."""
        if self.over:
            return
        coordinator = self.world.coordinator
        if coordinator is not None:
            grant = coordinator.sync(self._reports())
            self.worker.later(0.0, 0.1, self._receive, grant)
        self.worker.later(0.3, 1.1, self.sync)

    def _reports(self) -> Reports:
        return Reports(
            self.worker.member,
            self.view.number,
            tuple(self.steps),
            tuple(self.evaluations),
            tuple(self.written),
            tuple(self.snapshots),
            entered=self.entered,
        )

    def _receive(self, grant: Grant) -> None:
        if self.over:
            return
        self._tidy(grant.committed)
        for lease in grant.leases:
            if lease.step > self.granted:
                self.granted = lease.step
                self.leases[lease.step] = lease
                self.worker.progress[1][lease.step] = lease.progress[1]
        if grant.end is not None:
            assert self.end in (None, grant.end), f"{self.worker.member} is told {grant.end} after {self.end}"
            self.end = grant.end
            self.worker.told = (self.view.number, grant.end)
        self.go_on()

    def _tidy(self, committed: int) -> None:
        """Forget reports of what is committed, and snapshots that are not needed any more."""
        self.steps = [r for r in self.steps if r.step > committed]
        self.snapshots = [k for k in self.snapshots if k.step > committed]
        self.worker.ends = {n: e for n, e in self.worker.ends.items() if n == self.view.number or e.step > committed}
        if not self.world.sharded:
            return
        number, held = self.view.number, self.worker.held
        if committed > self.order.source.step:
            held = {h: p for h, p in held.items() if h.view >= number}
        newest: dict[MemberId, int] = {}
        for h in held:
            if h.view == number and h.step <= committed:
                newest[h.owner] = max(newest.get(h.owner, 0), h.step)
        self.worker.held = {h: p for h, p in held.items() if h.view != number or h.step >= newest.get(h.owner, 0)}


class Group:
    """What the members of one view do together: enter, and add up each step's gradients."""

    def __init__(self, world: World, view: View) -> None:
        self.world, self.view = world, view
        self.lives: dict[MemberId, Life] = {}
        self._reached: dict[int, dict[MemberId, Life]] = {}

    def enter(self, life: Life) -> None:
        """All are there: the state travels."""
        self.lives[life.worker.member] = life
        if self._whole(self.lives):
            state = self.world.source_state(life.order.source)
            for each in self.lives.values():
                each.worker.later(0.0, 0.4, each.take, state)

    def reach(self, step: int, life: Life) -> None:
        """All have done their part of `step`: each updates its state, at its own speed."""
        if life.over:
            return
        reached = self._reached.setdefault(step, {})
        reached[life.worker.member] = life
        if self._whole(reached):
            lives = [reached[m] for m in self.view.members]
            assert len({each.state for each in lives}) == 1, f"members of {self.view} train different states"
            self.world.made(self.view, [each.leases[step] for each in lives])
            for each in lives:
                each.worker.later(0.0, 0.3, each.apply, each.leases[step])

    def lost(self, member: MemberId) -> None:
        """A member died. Some of its peers see their connection break, the others wait until they are cut."""
        for peer, life in self.lives.items():
            if peer != member and self.world.random.random() < 0.5:
                life.worker.later(0.1, 1.0, life.leave, "connection reset by peer")

    def _whole(self, lives: dict[MemberId, Life]) -> bool:
        # A collective with somebody who is gone never ends.
        return len(lives) == self.view.size and all(life.worker.runs and not life.over for life in lives.values())
