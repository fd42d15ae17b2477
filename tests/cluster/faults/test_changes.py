"""Joins and announced leaves, and a coordinator that dies: nothing is computed again, and not a bit differs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import ray

import shoal
from shoal.coordinator.status import MemberStatus, RunStatus
from shoal.launch.supervise import find
from tests.cluster.faults.conftest import Result, Train
from tests.support.runs import Listener

pytestmark = pytest.mark.cluster

DEADLINE_S = 120.0
LONG = shoal.Budget(steps=1500)
"""So long that the run still goes when a newcomer is ready."""


class Conductor(Listener):
    """Once the run trains, does `act` with its coordinator, in a thread of its own."""

    def __init__(self, act: Callable[[Any], None]) -> None:
        super().__init__()
        self._act, self._run_id = act, ""
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def started(self, info: Mapping[str, Any]) -> None:
        self._run_id = info["run_id"]

    def status(self, status: RunStatus) -> None:
        super().status(status)
        if self._thread is None and status.phase == "training":
            self._thread = threading.Thread(target=self._conduct, daemon=True)
            self._thread.start()

    def _conduct(self) -> None:
        try:
            self._act(find(self._run_id))
        except BaseException as error:  # noqa: BLE001 - shown by the test, in whose thread this is not
            self.error = error


def members(coordinator: Any) -> list[MemberStatus]:
    return [m for m in ray.get(coordinator.members.remote()) if m.rank is not None]


def until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.05)


_LONG: dict[str, Result] = {}


@pytest.fixture
def undisturbed(train: Train) -> Result:
    if not _LONG:
        _LONG["it"] = train("replicated", workers=shoal.Workers(min=1, max=1), budget=LONG)
    return _LONG["it"]


@pytest.mark.parametrize("engine", ["replicated", "zero1", "zero3"])
def test_scaled_up_and_down_in_a_live_run(train: Train, undisturbed: Result, engine: str) -> None:
    def act(coordinator: Any) -> None:
        ray.get(coordinator.scale.remote(4, 4))
        until(lambda: len(members(coordinator)) == 4)
        ray.get(coordinator.scale.remote(1, 2))
        until(lambda: len(members(coordinator)) == 2)

    conductor = Conductor(act)
    workers = shoal.Workers(min=2, max=2)
    result = train(engine, listener=conductor, workers=workers, budget=shoal.Budget(steps=LONG.steps))
    assert conductor.error is None, conductor.error
    assert (result.losses, result.state) == (undisturbed.losses, undisturbed.state)
    changes = result.entries("change")
    assert {"join", "leave"} == {c["what"] for c in changes}
    assert all(c["steps_redone"] == 0 for c in changes), "what was announced costs no step"
    assert not result.entries("loss")


@pytest.mark.parametrize("engine", ["replicated", "zero2"])
def test_a_killed_coordinator_finds_its_run_again(train: Train, undisturbed: Result, engine: str) -> None:
    def act(coordinator: Any) -> None:
        pid = ray.get(coordinator.__ray_call__.remote(lambda self: os.getpid()))
        os.kill(pid, signal.SIGKILL)

    conductor = Conductor(act)
    result = train(engine, listener=conductor, workers=shoal.Workers(min=2, max=2), budget=LONG)
    assert conductor.error is None, conductor.error
    assert (result.losses, result.state) == (undisturbed.losses, undisturbed.state)
    assert len(result.entries("revived")) == 1
    assert len(result.entries("view")) == 1, "the members did not even notice"
