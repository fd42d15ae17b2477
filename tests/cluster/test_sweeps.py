"""Sweeps on a real cluster: a trial that fails, one that is stopped early, and a sweep that is killed and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.job.recipe import load_recipe
from shoal.launch.supervise import outcome_of
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import effective, read
from shoal.tuning import ASHA, Grid, Sweep, choice
from shoal.tuning.ledger import FILE
from shoal.tuning.recipe import BEST, SweepRecipe
from shoal.tuning.run import SweepOptions, run_sweep
from shoal.tuning.trials import SweepState
from shoal.tuning.trials import read as read_sweep
from tests.support.runs import digits
from tests.support.sabotage import Sabotage

pytestmark = pytest.mark.cluster

DEADLINE_S = 120.0


class Silent:
    """A display that shows nothing."""

    def opened(self, state: SweepState) -> None:
        pass

    update = closed = opened

    def event(self, kind: str, text: str) -> None:
        pass


def swept(runs: Path, sweep: Sweep, name: str) -> SweepState:
    """Run `sweep`, as if the recipe beside its runs had made it."""
    path = runs / "recipe.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("import shoal\n")
    recipe = SweepRecipe(sweep=sweep, path=path, name="sweep", sources=(), base=None, asked=())
    return run_sweep(recipe, SweepOptions(runs_dir=runs, name=name), Silent())


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_trial_does_not_end_the_sweep(tmp_path: Path) -> None:
    job = digits(Sabotage(how="raise", shards=8), budget=shoal.Budget(steps=8))
    sweep = Sweep(job=job, space={"task.step": choice(100, 3, 200)}, search=Grid(), workers=2)
    state = swept(tmp_path / "runs", sweep, "failing")
    assert [row.status for row in state.rows] == ["finished", "failed", "finished"]
    assert "ZeroDivisionError: scripted" in state.rows[1].reason
    assert state.status == "finished"
    assert state.best is not None
    assert [(p.step, p.samples) for p in state.best.curve] == [(8, 256)]
    assert {row.metric for row in state.rows if row.status == "finished"} == {state.best.best}
    assert [row.curve for row in read_sweep(Path(state.folder) / FILE).rows] == [row.curve for row in state.rows]
    best = load_recipe(Path(state.folder) / BEST).job
    assert best.task.step == state.best.fields["task.step"]  # type: ignore[attr-defined]


@pytest.mark.usefixtures("ray_cluster")
def test_a_bad_trial_is_stopped_early_and_quickly(tmp_path: Path) -> None:
    """One after another, so that it is known who is compared with whom. The first is the yardstick."""
    job = digits(
        budget=shoal.Budget(steps=2000),
        workers=shoal.Workers(min=1, max=1),
        evaluation=shoal.Evaluation(every=100, samples=64),
        checkpoints=shoal.Checkpoints(every=None, export=False),
    )
    sweep = Sweep(
        job=job,
        space={"optimizer.lr": choice(1e-6, 1e-2)},
        search=Grid(),
        first=({"optimizer.lr": 1e-2},),
        stop_early=ASHA(grace=100, resource="steps", reduction=2),
        at_once=1,
        workers=1,
    )
    state = swept(tmp_path / "runs", sweep, "early")
    good, bad = state.rows
    assert (good.fields, good.status, good.step) == ({"optimizer.lr": 1e-2}, "finished", 2000)
    assert (bad.status, bad.reason.partition(": ")[2]) == ("stopped-early", "not among the best 1/2 at 100")
    folder = RunFolder(Path(bad.folder))
    steps = [e["step"] for e in effective(read(folder.ledger)[0]) if e["kind"] == "commit"]
    assert 100 <= steps[-1] < 2000
    ended = outcome_of(folder)
    assert ended is not None
    assert (ended.status, ended.checkpoint) == ("stopped", None), "nobody will go on with it"
    assert state.best is good
    assert state.yardstick is good


@pytest.mark.parametrize(("resource", "grace"), [("joules", 0.5), ("dollars", 0.5)], ids=["joules", "dollars"])
@pytest.mark.usefixtures("ray_cluster")
def test_early_stopping_counts_what_it_costs(tmp_path: Path, resource: Any, grace: float) -> None:
    """At a dollar a second of one worker, and a few watts."""
    job = digits(
        budget=shoal.Budget(steps=1500),
        workers=shoal.Workers(min=1, max=1),
        evaluation=shoal.Evaluation(every=50, samples=64),
        checkpoints=shoal.Checkpoints(every=None, export=False),
        cost=shoal.Cost(per_hour=3600.0),
    )
    sweep = Sweep(
        job=job,
        space={"optimizer.lr": choice(1e-2, 1e-6)},
        search=Grid(),
        stop_early=ASHA(grace=grace, resource=resource, reduction=2),
        at_once=1,
        workers=1,
    )
    state = swept(tmp_path / "runs", sweep, resource)
    good, bad = state.rows
    assert (good.status, good.step) == ("finished", 1500)
    assert bad.status == "stopped-early"
    assert f" {resource}: not among the best 1/2 at " in bad.reason
    assert 50 <= bad.step < 1500
    used = [point.resource(resource) for point in bad.curve]
    assert used == sorted(used)  # type: ignore[type-var]
    assert used[-1] is not None
    assert used[-1] >= grace, "nobody is stopped before"
    assert state.spent(resource) == pytest.approx((getattr(good, resource) or 0.0) + used[-1])


RECIPE = """
import shoal
from shoal.tasks import ImageClassifier
from shoal.tuning import Grid, Sweep, choice

job = shoal.Job(
    name="digits",
    task=ImageClassifier(network="mlp", features=16, layers=1),
    data=shoal.Data(train="builtin:digits", cpus=0.5),
    batch=shoal.Batch(size=256),
    budget=shoal.Budget(steps=1200),
    evaluation=shoal.Evaluation(every=100, samples=64),
    checkpoints=shoal.Checkpoints(every=100, export=False),
)
sweep = Sweep(job=job, space={"optimizer.lr": choice(1e-3, 1e-2)}, search=Grid(), workers=2)
"""


def test_a_killed_sweep_goes_on_where_its_trials_were(tmp_path: Path) -> None:
    recipe, runs, name = tmp_path / "two.py", tmp_path / "runs", "killed"
    recipe.write_text(RECIPE)
    ledger = runs / "sweeps" / name / FILE
    process = started(str(recipe), "--runs", str(runs), "--name", name)
    wait_for(process, lambda: len(list(runs.glob("killed-00/checkpoints/*/manifest.json"))) >= 2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
    before = read_sweep(ledger)
    assert not any(row.over for row in before.rows), "killed in the middle"

    process = started(str(recipe), "--runs", str(runs), "--resume", name, "--json")
    said, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert json.loads(said.splitlines()[-1])["counts"]["finished"] == 2
    state = read_sweep(ledger)
    assert [row.fields for row in state.rows] == [{"optimizer.lr": 1e-3}, {"optimizer.lr": 1e-2}]
    assert all([p.step for p in row.curve] == list(range(100, 1201, 100)) for row in state.rows), (
        "none twice, none lost"
    )
    first = state.rows[0]
    assert first.runs == ["killed-00"], "the same run, from its checkpoint"
    entries = read(RunFolder(Path(first.folder)).ledger)[0]
    # A dying view may have tried once more before its process was gone, too.
    *_, resumed = [e["from_step"] for e in entries if e["kind"] == "resume"]
    assert resumed >= 200
    steps = [e["step"] for e in effective(entries) if e["kind"] == "commit"]
    assert steps == list(range(1, 1201))


def started(*arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", "sweep", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def wait_for(process: subprocess.Popen[str], reached: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the trial did not come so far in time"
        time.sleep(0.02)
