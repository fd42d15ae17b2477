"""How a view ends for all of its members: at its boundary, broken, broken up, and with some who do not come out."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from shoal.coordinator import running as module
from shoal.coordinator.running import Running
from shoal.errors import WorkerLost
from shoal.membership.course import Course
from shoal.membership.leasing import Leasing, Plan
from shoal.membership.messages import Fresh, ViewEnd
from shoal.membership.stragglers import Paces
from shoal.membership.view import View
from shoal.positions import Positions

pytestmark = pytest.mark.unit

VIEW = View(3, ("a", "b", "c"))
DEADLINE_S = 20.0


class Members:
    """Each comes out when it is cut, if it can: those in `deaf` cannot."""

    def __init__(self, deaf: str = "") -> None:
        loop = asyncio.get_running_loop()
        self.refs = {m: loop.create_future() for m in VIEW.members}
        self.actors = {m: SimpleNamespace(cut=SimpleNamespace(remote=self._cutter(m))) for m in VIEW.members}
        self.killed: list[str] = []
        self._deaf = deaf

    def _cutter(self, member: str) -> Any:
        def cut(_: str, view: int) -> None:
            if member not in self._deaf:
                self.out(member, "the view was cut")

        return cut

    def out(self, member: str, broken: str | None = None) -> None:
        if not self.refs[member].done():
            self.refs[member].set_result(ViewEnd(member, VIEW.number, 1, broken=broken))

    def kill(self, member: str, why: str) -> None:
        self.killed.append(member)


def running() -> Running:
    workers, batch = SimpleNamespace(silence_s=60.0), SimpleNamespace(virtual_shards=4)
    plan: Any = SimpleNamespace(sharded=False, key="run-1", job=SimpleNamespace(workers=workers, batch=batch))
    course = Course(Positions.even(8, 10))
    leasing = Plan(course, 4, evaluate_every=None, checkpoint_every=None, export=False, can_evaluate=False)
    return Running(plan, Leasing(VIEW, leasing, 1), Fresh(), Paces(), cold=False)


def ended(act: Any, deaf: str = "") -> tuple[dict[str, Any], list[str]]:
    """How the view ended for each after `act`, and who was killed."""

    async def play() -> tuple[dict[str, Any], list[str]]:
        members, view = Members(deaf), running()
        act(members, view)
        found = await asyncio.wait_for(view.ends(members.refs, members.actors, members.kill), DEADLINE_S)
        return found, members.killed

    return asyncio.run(play())


def test_at_its_boundary_nobody_is_cut() -> None:
    found, killed = ended(lambda members, _: [members.out(m) for m in VIEW.members])
    assert [e.broken for e in found.values()] == [None] * 3
    assert not killed


def test_one_that_is_out_too_early_frees_the_others() -> None:
    found, killed = ended(lambda members, _: members.out("b", "connection reset"))
    assert {m: e.broken is not None for m, e in found.items()} == dict.fromkeys(VIEW.members, True)
    assert not killed


def test_a_view_that_is_broken_up_frees_all() -> None:
    found, killed = ended(lambda _, view: view.break_up())
    assert {m: e.broken for m, e in found.items()} == dict.fromkeys(VIEW.members, "the view was cut")
    assert not killed


def test_who_does_not_come_out_of_it_is_killed_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUT_S", 0.2)
    monkeypatch.setattr(module, "GONE_S", 0.1)
    found, killed = ended(lambda _, view: view.break_up(), deaf="ac")
    assert sorted(killed) == ["a", "c"]
    assert found["b"].broken == "the view was cut"
    assert all(isinstance(found[m], WorkerLost) for m in "ac")
