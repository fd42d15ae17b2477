"""Budgets that are used up by the doing: the schedule ends with the budget, through kills, and the same again."""

from __future__ import annotations

from pathlib import Path

import pytest

import shoal
from shoal.audit.run import audit_run
from shoal.run_folder import RunFolder
from shoal.tracking.energy import rapl
from tests.support.faults import Fault, Faulty
from tests.support.runs import commits, computed_again, digits, ledger, run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


def test_a_run_of_some_seconds_ends_at_the_end_of_its_schedule_and_is_the_same_again(tmp_path: Path) -> None:
    job = digits(
        Faulty(faults=(Fault("SIGKILL", 1, 3, "backward"),), folder=str(tmp_path)),
        numerics="exact",
        budget=shoal.Budget(seconds=8.0),
        schedule=shoal.Linear(warmup=0.0, final=0.25),
        optimizer=shoal.Optimizer(lr=1e-2),
        workers=shoal.Workers(min=2, max=2),
        checkpoints=shoal.Checkpoints(every=5, keep_last=None, export=False),
    )
    outcome, _ = run(job, tmp_path)
    assert outcome.status == "finished", outcome.error
    assert any(e["kind"] == "loss" for e in ledger(outcome))
    done = commits(outcome)
    progress = [c["progress"] for c in done]
    assert [c["step"] for c in done] == list(range(1, len(done) + 1))
    assert progress == sorted(progress)
    assert (progress[0] > 0, progress[-1]) == (True, 1.0)
    assert [c["lr"] for c in done] == pytest.approx([1e-2 * (1 - 0.75 * p) for p in progress])
    assert done[-1]["lr"] == pytest.approx(2.5e-3)
    folder = RunFolder(Path(outcome.folder))
    assert folder.read()["total_steps"] == len(done)
    assert audit_run(folder).clean
    again = computed_again(folder, workers=1)
    assert again.identical, again.lines()
    assert again.equal == len(done)


def test_a_run_of_some_joules_ends_with_them_and_says_what_they_were_for(tmp_path: Path) -> None:
    # The estimate counts processor time, of which the start of each of three workers takes about three seconds. Real
    # counters, where they may be read, count what the idle cores take, too.
    budget = 16.0 if rapl(1.0) is None else 2000.0
    job = digits(
        Faulty(faults=(Fault("SIGKILL", 1, 3, "backward"),), folder=str(tmp_path)),
        budget=shoal.Budget(joules=budget),
        cost=shoal.Cost(per_hour=3600.0, watts_per_core=1.0),
        checkpoints=shoal.Checkpoints(every=None, export=False),
    )
    outcome, _ = run(job, tmp_path)
    assert outcome.status == "finished", outcome.error
    entries, done = ledger(outcome), commits(outcome)
    progress = [c["progress"] for c in done]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    decided = dict(pair for e in entries if e["kind"] == "course" for pair in e["decided"])
    assert [decided[c["step"]] for c in done] == progress
    for unit in ("seconds", "joules", "dollars"):
        used = [c["used"][unit] for c in done]
        assert used == sorted(used)
    end, workers = entries[-1], [e for e in entries if e["kind"] == "worker"]
    assert end["used"]["joules"] >= 0.9 * budget
    assert sorted(w["lost"] for w in workers) == [False, False, True]
    for unit in ("joules", "dollars"):
        total = sum(end["cost"][unit].values())
        assert total == pytest.approx(sum(sum(w[unit].values()) for w in workers), abs=1e-2)
        assert total == pytest.approx(end["used"][unit], abs=1e-2)
    assert sum(end["cost"]["dollars"].values()) == pytest.approx(sum(w["left"] - w["joined"] for w in workers), abs=1.0)
    assert all({"start", "train"} <= set(w["joules"]) for w in workers)
    assert RunFolder(Path(outcome.folder)).read()["cost"] == end["cost"] == dict(outcome.cost)
