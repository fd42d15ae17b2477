"""Shoal's ledger in the form that all arms share."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.churn.arms.on_shoal import events

pytestmark = pytest.mark.unit


def commit(t: float, step: int, view: int) -> dict[str, Any]:
    return {"kind": "commit", "time": t, "step": step, "view": view, "workers": 2, "step_s": 0.5}


def change(t: float, view: int, what: str, redone: int) -> dict[str, Any]:
    costs = dict.fromkeys(("detect_s", "regroup_s", "state_s", "resume_s", "idle_s"), 0.1)
    return {"kind": "change", "time": t, "view": view, "what": what, "steps_redone": redone, **costs}


def found(*ledger: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(e["kind"], e.get("step", e.get("samples", e.get("what")))) for e in events(ledger, 10)]


def test_a_change_of_several_causes_throws_its_steps_away_once() -> None:
    ledger = [commit(1, 1, 1), change(2, 2, "loss", 3), change(2, 2, "join", 3), commit(2, 2, 2)]
    assert found(*ledger) == [("step", 1), ("parts", "loss"), ("redone", 30), ("parts", "join"), ("step", 2)]


def test_commits_that_a_checkpoint_takes_back_are_not_counted_twice() -> None:
    """Steps 2 and 3 were committed, 4 was applied; all were lost, and the run goes on from the checkpoint of step 1."""
    resume = {"kind": "resume", "time": 2, "from_step": 1}
    ledger = [commit(1, 1, 1), commit(1, 2, 1), commit(1, 3, 1), resume, change(3, 2, "loss", 3), commit(3, 2, 2)]
    assert ("redone", 10) in found(*ledger)
    assert [s for kind, s in found(*ledger) if kind == "step"] == [1, 2, 3, 2]
