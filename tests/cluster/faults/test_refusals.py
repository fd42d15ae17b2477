"""Newcomers that do not fit the run are refused, named with what differs, and the run goes on without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

import shoal
from tests.support.conductor import Conductor, members, until
from tests.support.runs import digits, ledger, losses, run
from tests.support.sabotage import Changing

pytestmark = pytest.mark.cluster


def test_another_model_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    marker = tmp_path / "changed"

    def refused() -> bool:
        return any("unlike" in text for _, text in list(conductor.events))

    def act(coordinator: Any) -> None:
        marker.touch()
        ray.get(coordinator.scale.remote(2, 3))
        until(refused)
        assert len(members(coordinator)) == 2, "the others go on"
        ray.get(coordinator.stop.remote("seen"))

    conductor = Conductor(act)
    job = digits(
        Changing(marker=str(marker)), budget=shoal.Budget(steps=1_000_000), failures=shoal.Failures(max_failures=0)
    )
    outcome, heard = run(job, tmp_path / "runs", listener=conductor, pool=None)
    assert conductor.error is None, conductor.error
    assert outcome.status == "stopped", outcome.error
    (entry,) = [e for e in ledger(outcome) if e["kind"] == "loss"]
    assert entry["cause"] == "worker refused"
    assert "model is" in entry["reason"]
    assert "not charged" in entry["reason"]
    assert losses(outcome)
    assert "worker refused" in heard.said("loss")
