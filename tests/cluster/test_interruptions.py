"""Runs that are killed, stopped, broken and continued. The numbers must come out as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import shoal
from shoal.coordinator.status import Outcome
from tests.support.runs import commits, digits, ledger, losses, run
from tests.support.sabotage import Sabotage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

TOLERANCE = 2e-5
STEPS = 600
"""Enough for a run to be still going when it is interrupted after a second."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(runs: Path) -> list[float]:
    return losses(run(digits(), runs)[0])


@pytest.fixture(scope="module")
def long_undisturbed(runs: Path) -> list[float]:
    return losses(run(long_job(), runs)[0])


def agree(outcome: Outcome, right: list[float]) -> None:
    """The same losses. In the last steps before a loss the lost member's part may be missing; the ledger says so."""
    found, entries = losses(outcome), commits(outcome)
    whole = [i for i, entry in enumerate(entries) if "covered" not in entry]
    assert [found[i] for i in whole] == pytest.approx([right[i] for i in whole], rel=TOLERANCE)
    assert entries[-1]["step"] - 1 in whole, "the last step was done with everybody's word"
    assert len(found) == len(right)


def manifest(run_folder: Path, *, step: int) -> str:
    """The file that makes the checkpoint of `step` exist."""
    return str(run_folder / "checkpoints" / f"step-{step:08d}" / "manifest.json")


def long_job(**changes: object) -> shoal.Job:
    return digits(budget=shoal.Budget(steps=STEPS), checkpoints=shoal.Checkpoints(every=None, export=False), **changes)


@pytest.mark.parametrize("engine", ["replicated", "zero"])
def test_a_killed_worker_costs_no_sample_and_changes_no_number(
    runs: Path, tmp_path: Path, undisturbed: list[float], engine: str
) -> None:
    task = Sabotage(how="SIGKILL", rank=1, step=7, marker=str(tmp_path / "killed"))
    outcome, heard = run(digits(task, engine=shoal.Engine(name=engine)), runs)  # type: ignore[arg-type]
    assert outcome.status == "finished", outcome.error
    agree(outcome, undisturbed)
    assert "worker lost: w" in heard.said("loss")
    # It went on from memory, in a second view.
    assert not [e for e in ledger(outcome) if e["kind"] == "resume"]
    assert {c["view"] for c in commits(outcome)} == {1, 2}


def test_mlflow_shows_no_step_twice_after_a_loss(runs: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    task = Sabotage(how="SIGKILL", rank=0, step=7, marker=str(tmp_path / "killed"))
    outcome, _ = run(digits(task), runs)
    place = json.loads((Path(outcome.folder) / "run.json").read_text())["mlflow"]
    history = MlflowClient(place["uri"]).get_metric_history(place["run_id"], "train/loss")
    assert Counter(m.step for m in history) == dict.fromkeys(range(1, 13), 1)


def test_a_hung_worker_is_found_named_and_replaced(runs: Path, tmp_path: Path, undisturbed: list[float]) -> None:
    task = Sabotage(how="SIGSTOP", rank=1, step=6, marker=str(tmp_path / "stopped"))
    workers = shoal.Workers(min=2, max=2, silence_s=12.0)
    outcome, heard = run(digits(task, workers=workers), runs)
    assert outcome.status == "finished", outcome.error
    hung = [m for e in ledger(outcome) if e["kind"] == "loss" for m in e["members"]]
    assert len(hung) == 1
    assert f"worker {hung[0]} is cut out: it did not speak" in heard.said("hang")
    assert f"worker silent: {hung[0]}" in heard.said("loss")
    agree(outcome, undisturbed)


def test_no_loss_is_survived_where_none_is_allowed(runs: Path) -> None:
    task = Sabotage(how="SIGKILL", rank=1, step=7, once_there=manifest(runs / "no-loss", step=4))
    outcome, _ = run(digits(task, failures=shoal.Failures(max_failures=0)), runs, name="no-loss")
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert "max_failures=0" in (outcome.error or "")
    assert outcome.checkpoint is not None
    assert outcome.checkpoint.endswith("step-00000004")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "ZeroDivisionError: scripted: the user's code fails"),
        ("nan", "the gradient is not finite"),
        ("vector", "scalar"),
    ],
)
@pytest.mark.parametrize("engine", ["replicated", "zero"])
def test_an_error_in_the_task_fails_the_run_at_once(runs: Path, how: str, message: str, engine: str) -> None:
    begun = time.monotonic()
    outcome, _ = run(digits(Sabotage(how=how, rank=0, step=3), engine=shoal.Engine(name=engine)), runs)  # type: ignore[arg-type]
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert message in (outcome.error or "")
    assert [e["kind"] for e in ledger(outcome)].count("view") == 1
    assert time.monotonic() - begun < 120  # no waiting for collective time-outs
    if how == "nan":
        assert "step 3" in (outcome.error or "")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("zero", 3, 4), ("replicated", 1, 1)),
        (("replicated", 1, 1), ("zero", 2, 3)),
        (("zero", 1, 2), ("zero", 3, 3)),
    ],
    ids=["zero3x4-replicated", "replicated-zero2x3", "zero1x2-zero3x3"],
)
def test_stopped_and_continued_by_another_engine_at_another_size(
    runs: Path, long_undisturbed: list[float], first: tuple[str, int, int], second: tuple[str, int, int]
) -> None:
    def job(name: str, stage: int, workers: int) -> shoal.Job:
        return long_job(
            engine=shoal.Engine(name=name, stage=stage),  # type: ignore[arg-type]
            workers=shoal.Workers(min=workers, max=workers, cpus=1.0),
        )

    stopped, heard = run(job(*first), runs, interrupt_at=20)
    assert (stopped.status, stopped.exit_code) == ("stopped", 130)
    assert 20 <= stopped.step < STEPS
    assert "stopping after this step" in heard.said("stopping")
    assert stopped.checkpoint is not None
    assert stopped.checkpoint.endswith(f"step-{stopped.step:08d}")
    done, _ = run(job(*second), runs, resume=stopped.run_id)
    assert (done.status, done.run_id) == ("finished", stopped.run_id)
    assert losses(done) == pytest.approx(long_undisturbed, rel=1e-3)
    # Before rounding can grow over hundreds of steps, the agreement is close.
    near = slice(0, stopped.step + 20)
    assert losses(done)[near] == pytest.approx(long_undisturbed[near], rel=TOLERANCE * 10)


def test_a_checkpoint_of_another_model_is_refused_by_name(runs: Path) -> None:
    from tests.support.sabotage import Digits

    stopped, _ = run(digits(), runs)
    wider = digits(Digits(width=32), budget=shoal.Budget(steps=20))
    outcome, _ = run(wider, runs, resume=stopped.run_id)
    assert outcome.status == "failed"
    assert "1.weight" in (outcome.error or "")


def test_a_checkpoint_folder_that_cannot_be_written_fails_the_run_with_the_reason(runs: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("in the way")
    outcome, heard = run(digits(checkpoints=shoal.Checkpoints(every=4, path=str(blocked / "ck"), export=False)), runs)
    assert outcome.status == "failed"
    assert str(blocked) in (outcome.error or "")
    assert "checkpoint of step 4 failed" in heard.said("warning")
    assert len(losses(outcome)) == 12  # training went on


DRIVER = """
import sys
from pathlib import Path
from shoal.launch.api import RunOptions, run_job
from tests.support.runs import Listener, digits
import shoal

job = digits(budget=shoal.Budget(steps=10**6), checkpoints=shoal.Checkpoints(every=None, export=False))
run_job(job, options=RunOptions(runs_dir=Path(sys.argv[1]), name="orphan", address=sys.argv[2], driver_silence_s=3.0),
        display=Listener())
"""


def test_a_run_whose_submitter_is_killed_checkpoints_and_ends_by_itself(tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path), address], start_new_session=True)
    folder = tmp_path / "orphan"

    def status() -> str:
        return json.loads((folder / "run.json").read_text())["status"] if (folder / "run.json").exists() else ""

    def coordinators() -> list[str]:
        return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]

    def until(what: str, deadline_s: float, found: Callable[[], bool]) -> None:
        end = time.monotonic() + deadline_s
        while not found():
            assert time.monotonic() < end, f"{what} did not come in {deadline_s:g}s; status {status()!r}"
            time.sleep(0.1)

    ledger_file = folder / "ledger.jsonl"
    until("the first commit", 90, lambda: ledger_file.exists() and '"commit"' in ledger_file.read_text())
    driver.kill()
    driver.wait()
    until("the clean end", 60, lambda: status() == "stopped")
    assert list(folder.glob("checkpoints/*/manifest.json"))
    last = json.loads(ledger_file.read_text().splitlines()[-1])
    assert (last["kind"], last["reason"]) == ("end", "the submitting process is gone")
    until("the end of the coordinator", 30, lambda: not any("orphan" in name for name in coordinators()))
