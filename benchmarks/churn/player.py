"""Plays a schedule to a run: when, in which order, and when it is over."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.churn.arms.base import Arm
from benchmarks.churn.eventlog import EventLog
from benchmarks.churn.schedule import Action

READY_STEPS = 10
"""Done by all who are to begin with, before anything is measured."""
QUIET_S = 2.0
"""A run has settled after so long with as many workers as there are places."""
SETTLE_S = 90.0
"""Longest wait for that; a system that does not come to it is marked so."""
POLL_S = 0.05


def play(arm: Arm, log: EventLog) -> None:
    """Do what the arm's schedule says, from the moment when its run stands; then let it finish, or stop it."""
    schedule = arm.setup.schedule
    try:
        _ready(arm, log)
        if schedule.settled:
            _one_by_one(arm, log, len(schedule.first))
            arm.setup.stop.set()
        else:
            _on_time(arm, log)
    except TimeoutError as error:
        log("stuck", why=str(error))
        arm.setup.stop.set()


def _ready(arm: Arm, log: EventLog) -> None:
    workers = arm.begins_with
    _wait(lambda: arm.workers() == workers, f"{workers} workers at the beginning")
    done = arm.steps()
    _wait(lambda: arm.steps() >= done + READY_STEPS, "first steps")
    log("ready", workers=len(arm.setup.schedule.first))


def _on_time(arm: Arm, log: EventLog) -> None:
    begin = time.time()
    for action in arm.setup.schedule.actions:
        if arm.setup.stop.wait(max(0.0, begin + action.at_s - time.time())):
            return
        log(action.what, slot=action.slot, at=action.at_s)
        _act(arm, action)


def _one_by_one(arm: Arm, log: EventLog, workers: int) -> None:
    begin = time.time()
    _settled(arm, workers)
    for action in arm.setup.schedule.actions:
        log(action.what, slot=action.slot, at=time.time() - begin)
        _act(arm, action)
        workers += 1 if action.what == "join" else -1
        _settled(arm, workers)


def _act(arm: Arm, action: Action) -> None:
    {"join": arm.join, "kill": arm.kill, "leave": arm.leave}[action.what](action.slot)


def _settled(arm: Arm, workers: int) -> None:
    """Wait until steps are done by so many workers, and QUIET_S more."""
    _wait(lambda: arm.workers() == workers, f"{workers} workers")
    time.sleep(QUIET_S)


def _wait(found: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SETTLE_S
    while not found():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not there after {SETTLE_S:.0f}s")
        time.sleep(POLL_S)
