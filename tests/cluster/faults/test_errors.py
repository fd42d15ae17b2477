"""The user's own error ends the run at once, with its traceback, and uses up no retries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.faults.conftest import ENGINES, job
from tests.support.faults import Fault, Faulty
from tests.support.runs import ledger, run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_in_the_loss_ends_the_run_with_that_traceback(runs: Path, tmp_path: Path, engine: str) -> None:
    task = Faulty(faults=(Fault("raise", 1, 20, "forward"),), folder=str(tmp_path))
    outcome, _ = run(job(engine, task), runs)
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert "ZeroDivisionError: scripted: the user's code fails" in outcome.error
    assert "in loss" in outcome.error, "the traceback is the user's"
    entries = ledger(outcome)
    assert sum(e["kind"] == "view" for e in entries) == 1
    assert sum(e["kind"] == "loss" for e in entries) == 1
