"""Joins and announced leaves, and a coordinator that dies: nothing is computed again, and not a bit differs."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import ray

import shoal
from tests.cluster.faults.conftest import Result, Train, alone
from tests.support.conductor import Conductor, members, until

pytestmark = pytest.mark.cluster

LONG = 1500
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
