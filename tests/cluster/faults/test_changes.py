"""Joins and announced leaves, and a coordinator that dies: nothing is computed again, and not a bit differs."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest
import ray

import shoal
from shoal.coordinator.status import MemberStatus
from tests.cluster.faults.conftest import Result, Train, alone
from tests.support.conductor import Conductor, members, until

pytestmark = pytest.mark.cluster

LONG = 800
"""So long that the run still goes when a newcomer is ready."""


@pytest.fixture
def undisturbed(train: Train) -> Result:
    return alone(train, LONG)


@pytest.mark.parametrize("engine", ["replicated", "zero1", "zero3"])
def test_scaled_up_and_down_in_a_live_run(train: Train, undisturbed: Result, engine: str) -> None:
    def act(coordinator: Any) -> None:
        ray.get(coordinator.scale.remote(4, 4))
        until(lambda: len(members(coordinator)) == 4)
        ray.get(coordinator.scale.remote(1, 2))
        until(lambda: len(members(coordinator)) == 2)

    conductor = Conductor(act)
    workers = shoal.Workers(min=2, max=2)
    result = train(engine, listener=conductor, workers=workers, budget=shoal.Budget(steps=LONG), warm=4)
    assert conductor.error is None, conductor.error
    assert (result.losses, result.state) == (undisturbed.losses, undisturbed.state)
    changes = result.entries("change")
    assert {"join", "leave"} == {c["what"] for c in changes}
    assert all(c["steps_redone"] == 0 for c in changes), "what was announced costs no step"
    assert not result.entries("loss")


@pytest.mark.parametrize("engine", ["replicated", "zero2"])
def test_a_process_that_is_told_to_end_leaves_in_good_order(train: Train, undisturbed: Result, engine: str) -> None:
    """SIGTERM, as from Slurm or an operator: no loss, no step computed again, and the process does end."""
    told: list[MemberStatus] = []

    def act(coordinator: Any) -> None:
        told.append(members(coordinator)[0])
        pid = told[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        until(lambda: told[0].member not in [m.member for m in members(coordinator)])
        until(lambda: not psutil.pid_exists(pid))
        until(lambda: len(members(coordinator)) == 2)

    conductor = Conductor(act)
    two, steps = shoal.Workers(min=1, max=2), shoal.Budget(steps=LONG)
    result = train(engine, listener=conductor, workers=two, budget=steps, warm=3)
    assert conductor.error is None, conductor.error
    assert (result.losses, result.state) == (undisturbed.losses, undisturbed.state)
    assert not result.entries("loss")
    changes = result.entries("change")
    assert {"leave", "join"} == {c["what"] for c in changes}
    assert [c["members"] for c in changes if c["what"] == "leave"] == [[told[0].member]]
    assert all(c["steps_redone"] == 0 for c in changes)
    assert "was told to end (SIGTERM)" in conductor.said("info")


@pytest.mark.parametrize(("engine", "alone"), [("replicated", False), ("zero2", True)])
def test_a_killed_coordinator_finds_its_run_again(train: Train, undisturbed: Result, engine: str, alone: bool) -> None:
    """`alone`: without a pool."""

    def act(coordinator: Any) -> None:
        pid = ray.get(coordinator.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(pid, signal.SIGKILL)

    conductor = Conductor(act)
    options = {"pool": None} if alone else {}
    two, steps = shoal.Workers(min=2, max=2), shoal.Budget(steps=LONG)
    result = train(engine, listener=conductor, workers=two, budget=steps, **options)
    assert conductor.error is None, conductor.error
    assert (result.losses, result.state) == (undisturbed.losses, undisturbed.state)
    assert len(result.entries("revived")) == 1
    assert len(result.entries("view")) == 1, "the members did not even notice"
