"""A run under a trace, event by event. Who takes part and when a change pays, `membership` decides, as in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, Literal

from shoal.membership.buddies import buddies
from shoal.membership.decisions import Change as WantedChange
from shoal.membership.decisions import Form, Situation, Standing, change_wanted, leaves_before_s, next_view
from shoal.membership.leasing import ahead_s, horizon
from shoal.membership.losses import Recover
from shoal.membership.messages import Fresh, Stored
from shoal.membership.recovery import Choice
from shoal.membership.view import MemberId, View
from shoal.simulate.account import Change, Progress
from shoal.simulate.memory import Memory
from shoal.simulate.methods import Method
from shoal.simulate.trace import Event, Trace
from shoal.simulate.work import Work

_NEARLY = 1e-9
"""Of a step: what rounding may take from its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is played."""

    work: Work
    trace: Trace
    length_s: float
    per_node: int
    """Workers of a node: they come and go together."""
    nodes: int
    """The run has at most so many; what else the trace offers is not taken until one goes."""
    least: int = 1
    """Fewer workers than this only wait."""


@dataclass(slots=True)
class _Node:
    name: str
    workers: tuple[MemberId, ...]
    ready: bool = False
    goes_at: float | None = None
    """It was announced that it will be taken away then."""


class Play:
    """One run. `play` it once, then read what it came to."""

    def __init__(self, setting: Setting, method: Method) -> None:
        self.setting, self.method, self.work = setting, method, setting.work
        self.now = 0.0
        self.available = 0.0
        """Worker-seconds of all workers, from their coming to their going."""
        self.progress = Progress()
        self.changes: list[Change] = []
        self.losses = 0
        """Nodes that were lost without notice while they took part."""
        self._memory = Memory(self.work.sharded)
        self._queue: list[tuple[float, int, int, str, Any]] = []
        self._order = count()
        self._offered: dict[str, None] = {}
        self._hired: dict[str, _Node] = {}
        self._view: View | None = None
        self._in_view: dict[str, int] = {}
        """Nodes with members, and how many each has."""
        self._numbers = count(1)
        self._phase: Literal["waiting", "stopped", "training"] = "waiting"
        self._plan = 0
        """Number of the newest intention; what was planned before it does not happen."""
        self._began = self._cycle = self._stopped_at = 0.0
        self._cause = "start"
        self._change: WantedChange | None = None
        """For which the view will end."""

    def play(self) -> Play:
        """From the beginning to the end."""
        for event in self.setting.trace.events:
            if event.notice_s > 0:
                self._at(event.at_s - event.notice_s, "notice", event)
            self._at(event.at_s, event.what, event)
        while self._queue and self._queue[0][0] <= self.setting.length_s:
            self._advance(self._queue[0][0])
            if self._queue[0][1]:
                _, _, _, what, plan = heappop(self._queue)
                if plan == self._plan:
                    getattr(self, f"_{what}")()
            else:
                self._outside()
        self._advance(self.setting.length_s)
        if self._phase == "training":
            self._close_stretch(broken=False)
        return self

    # Time ------------------------------------------------------------------------------------------------------------

    def _at(self, at_s: float, what: str, event: Event | _Node) -> None:
        """Something from outside of the run."""
        heappush(self._queue, (at_s, 0, next(self._order), what, event))

    def _intend(self, at_s: float, what: Literal["decide", "formed", "boundary", "saved", "look"]) -> None:
        """What the run does next, unless something comes between."""
        self._plan += 1
        heappush(self._queue, (at_s, 1, next(self._order), what, self._plan))

    def _advance(self, to: float) -> None:
        passed, spent, per_node = to - self.now, self.progress.spent, self.setting.per_node
        ready = sum(n.ready for n in self._hired.values())
        spent.start += passed * per_node * (len(self._hired) - ready)
        members = sum(self._in_view.values())
        spent.idle += passed * (per_node * ready - members)
        if self._phase == "stopped":
            spent.stopped += passed * members
        self.available += passed * per_node * len(self._hired)
        self.now = to

    # What happens to it ----------------------------------------------------------------------------------------------

    def _outside(self) -> None:
        """All that happens at this moment, as one blow."""
        lost = False
        while self._queue and self._queue[0][0] == self.now and not self._queue[0][1]:
            _, _, _, what, thing = heappop(self._queue)
            if what == "add":
                self._offered[thing.node] = None
            elif what == "ready":
                thing.ready = True
            elif what == "notice" and thing.node in self._hired:
                self._hired[thing.node].goes_at = thing.at_s
            elif what == "remove":
                lost = self._remove(thing.node) or lost
            self._hire()
        if lost:
            self._break()
        else:
            self._look()

    def _hire(self) -> None:
        staying = sum(n.goes_at is None for n in self._hired.values())
        while self._offered and staying < self.setting.nodes:
            name = next(iter(self._offered))
            del self._offered[name]
            members = tuple(f"{name}.{next(self._order)}" for _ in range(self.setting.per_node))
            self._hired[name] = node = _Node(name, members)
            self._at(self.now + self.work.costs.start_s, "ready", node)
            staying += 1

    def _remove(self, name: str) -> bool:
        """A node is taken away; returns whether the view has lost it."""
        self._offered.pop(name, None)
        if name not in self._in_view:
            self._hired.pop(name, None)
            return False
        if self._phase == "training":
            self._close_stretch(broken=True)
            self._phase, self._stopped_at = "stopped", self.now
        del self._hired[name], self._in_view[name]
        self.losses += 1
        return True

    def _break(self) -> None:
        """The view has lost members."""
        self._cause = "loss"
        self._intend(self.now + self.work.costs.detect_s, "decide")

    # What it decides -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Is another view wanted?"""
        if self._phase == "waiting":
            self._decide()
        if self._phase != "training" or self._change is not None:
            return
        situation = self._situation(None)
        self._change = change_wanted(situation)
        if self._change is not None:
            step_s = self._cycle
            size = sum(self._in_view.values())
            ahead = horizon(self._whole(), step_s, ahead_s=ahead_s(size))
            self._intend(self._began + ahead * step_s, "boundary")
            return
        before = leaves_before_s(situation)
        going = [n.goes_at - before for n in self._hired.values() if n.goes_at is not None and n.name in self._in_view]
        if going:
            self._intend(max(self.now + self._cycle, min(going)), "look")

    def _boundary(self) -> None:
        """The view ends as it was planned."""
        view, change = self._view, self._change
        assert view is not None, "only a view has a boundary"
        assert change is not None, "a view has a boundary if a change is wanted"
        self._close_stretch(broken=False)
        leaving = [m for n in self._hired.values() if n.goes_at is not None for m in n.workers]
        self._remember(view, self.progress.done, leaving)
        self._cause, self._stopped_at, self._phase = "change", self.now, "stopped"
        if self.method.in_place and not change.checkpoint:
            self._decide()
        else:  # in place only if nobody stays who has the state
            self._intend(self.now + self.method.save_s(self.work, view.size), "saved")

    def _saved(self) -> None:
        """The state at the boundary is durable."""
        self.progress.save(self.progress.done)
        self._decide()

    def _decide(self) -> None:
        """Between two views."""
        decision = next_view(self._situation(self._choice()))
        if not isinstance(decision, Form):
            self._phase, self._view = "waiting", None
            self._in_view.clear()
            self._let_go()
            return
        old = set(self._view.members) if self._view is not None else set()
        view = View(next(self._numbers), decision.members)
        chosen, source = set(view.members), decision.source
        from_memory = not isinstance(source, (Fresh, Stored))
        redone = self.progress.back_to(source.step)
        if self.method.in_place:
            self._memory.form(view, source.step)
        self._view, self._phase = view, "stopped"
        counts = {n.name: sum(m in chosen for m in n.workers) for n in self._hired.values()}
        self._in_view = {name: members for name, members in counts.items() if members}
        self._let_go()
        if self._cause == "start":
            until, self._stopped_at = self.now + self.work.regroup_s(view.size) + self.work.costs.resume_s, self.now
        else:
            newcomers = len(chosen - old)
            until = self.now + self.method.stop_s(self.work, view.size, newcomers, from_memory=from_memory)
        began = self._stopped_at
        self.changes.append(Change(self._cause, began, until - began, view.size, redone, from_memory))
        self._intend(until, "formed")

    def _let_go(self) -> None:
        """Who is to leave and is no member any more has handed over what it had."""
        for name in [n.name for n in self._hired.values() if n.goes_at is not None and n.name not in self._in_view]:
            del self._hired[name]

    def _formed(self) -> None:
        """The view goes on."""
        view = self._view
        assert view is not None, "a view was formed"
        self._phase, self._cause, self._change = "training", "", None
        self._began = self.now
        self._cycle = self.work.step_s(view.size) + self.method.overhead_s(self.work, view.size)
        if not self.work.sharded:
            self._remember(view, self.progress.done)
        self._look()

    def _choice(self) -> Choice:
        saved = self.progress.saved
        if self.method.in_place:
            alive = [m for n in self._hired.values() for m in n.workers if n.ready]
            return self._memory.choose(alive, saved)
        return Choice(Stored(saved, "checkpoint") if saved else Fresh(), "the last checkpoint")

    def _situation(self, choice: Choice | None) -> Situation:
        setting, view = self.setting, self._view
        ready = [n for n in self._hired.values() if n.ready]
        step_s = self.work.step_s(view.size) if view is not None else None
        left = int((setting.length_s - self.now) / step_s) if step_s else 0
        size = view.size if view is not None else max(1, len(ready) * setting.per_node)
        return Situation(
            ready=tuple(
                Standing(
                    m,
                    n.name,
                    "its node goes" if n.goes_at is not None else None,
                    max(0.0, n.goes_at - self.now) if n.goes_at is not None else 0.0,
                )
                for n in ready
                for m in n.workers
            ),
            starting=(len(self._hired) - len(ready)) * setting.per_node,
            min=setting.least,
            max=setting.nodes * setting.per_node,
            last=view,
            choice=choice,
            saved=choice is not None and choice.step == self.progress.saved,
            step=self.progress.done,
            total_steps=self.progress.done + left,
            virtual_shards=self.work.virtual_shards,
            step_s=step_s,
            resize_cost_s=self.method.change_s(self.work, size),
            verdict=Recover("", 0) if self._cause == "loss" else None,
            settled=bool(self.changes) or len(ready) == len(self._hired),
        )

    # Training --------------------------------------------------------------------------------------------------------

    def _whole(self) -> int:
        """Steps that are done of those since the view began."""
        return int((self.now - self._began) / self._cycle + _NEARLY)

    def _close_stretch(self, *, broken: bool) -> None:
        """The view does no further step: book what it has done, and see what of it is safe."""
        view, work, spent = self._view, self.work, self.progress.spent
        assert view is not None, "there is a view that trains"
        n, whole, first = view.size, self._whole(), self.progress.done
        step_s = work.step_s(n)
        each = {"useful": work.even_s, "overhead": n * (self._cycle - step_s), "idle": n * step_s - work.even_s}
        self.progress.add(whole, **each)
        rest = max(0.0, self.now - self._began - whole * self._cycle)
        if broken:
            spent.lost += n * rest
        else:  # only the end of time cuts a step that nothing breaks
            for bucket, seconds in each.items():
                setattr(spent, bucket, getattr(spent, bucket) + seconds * rest / self._cycle)
        every, safe_after = self.method.saves(work, n)
        passed = self.now - self._began + _NEARLY * self._cycle
        apart = self.method.checkpoint_every
        durable = int((passed - work.write_s(n)) / self._cycle) + first if passed > work.write_s(n) else 0
        self.progress.save(durable // apart * apart)
        if work.sharded and passed > safe_after:
            kept = int(
                (passed - safe_after) / self._cycle
            )  # of the view's steps the first is kept, and each `every`-th
            if kept >= 1:
                self._remember(view, first + 1 + (kept - 1) // every * every)
        elif not work.sharded:
            self._remember(view, self.progress.done)

    def _remember(self, view: View, step: int, leaving: Sequence[MemberId] = ()) -> None:
        if not self.method.in_place:
            return
        nodes = {m: n.name for n in self._hired.values() for m in n.workers}
        keepers = buddies(view.members, nodes, leaving) if self.work.sharded else {}
        self._memory.keep(view, step, keepers)
