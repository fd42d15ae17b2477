"""The recorder against a real SQLite store, read back through MLflow's own client."""

from __future__ import annotations

import math
import stat
import time
from pathlib import Path

import pytest

from shoal.errors import ConfigError, ShoalError
from shoal.run_folder import write_json
from shoal.tracking.ledger import Ledger
from shoal.tracking.owner import is_alive, owner
from shoal.tracking.reaper import reap
from shoal.tracking.recorder import Recorder, send_pending
from shoal.tracking.settings import DatasetEntry
from tests.support.ledgers import churning_run, commit, evaluation, start
from tests.support.mlflow_store import history, mlflow_run, new_folder, settings_for, wait_until

pytestmark = pytest.mark.unit

NOBODY = {"pid": 2**22 + 1, "started": 1.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the module: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def record(folder, settings, entries) -> Recorder:
    """Append `entries` and record them to the end."""
    ledger = Ledger(folder.ledger)
    ledger.append(entries)
    ledger.close()
    recorder = Recorder(folder, settings)
    recorder.start()
    assert recorder.close(deadline_s=60) == 0, recorder.problem
    return recorder


def test_a_whole_run(tmp_path: Path, store: str) -> None:
    folder = new_folder(tmp_path, "whole")
    write_json(folder.job, {"name": "gpt"})
    folder.recipe.mkdir()
    (folder.recipe / "gpt.py").write_text("job = ...")
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    entries = list(churning_run(time.time() - 300))
    data = DatasetEntry(name="builtin:stdlib", digest="ab" * 32, source="/data/stdlib")
    params = {f"p{i}": str(i) for i in range(150)} | {"task.width (px)": "1", "long": "x" * 7000}
    record(folder, settings_for(folder, store, params=params, tags={"engine": "zero"}, dataset=data), entries)

    run = mlflow_run(store, folder)
    expected = {e["step"]: e["loss"] for e in reversed(entries) if e["kind"] == "commit"}
    assert sorted(history(store, run.info.run_id, "train/loss")) == sorted(expected.items())
    assert len(history(store, run.info.run_id, "train/learning_rate")) == 400
    assert [s for s, _ in history(store, run.info.run_id, "val/bits_per_byte")] == list(range(50, 401, 50))
    assert run.data.metrics["work/workers"] == 3
    assert run.data.metrics["val/loss.best"] == min(e["metrics"]["val/loss"] for e in entries if "metrics" in e)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == round(entries[-1]["time"] * 1000)
    assert run.data.tags["stop_reason"] == "budget used"
    assert run.data.tags["engine"] == "zero"
    assert run.data.tags["shoal.checkpoint_step"] == "400"
    assert len(run.data.params) == 152
    assert run.data.params["task.width _px_"] == "1"
    assert run.inputs.dataset_inputs[0].dataset.digest == ("ab" * 32)[:36]
    kept = {p.relative_to(Path(run.info.artifact_uri)).as_posix() for p in Path(run.info.artifact_uri).rglob("*.*")}
    assert kept == {"job.json", "report.html", "recipe/gpt.py", "model/config.json"}


def test_a_resumed_run_continues_and_repeats_nothing(tmp_path: Path, store: str) -> None:
    folder = new_folder(tmp_path, "resumed")
    now = time.time() - 100
    first = [start(now), *[commit(s, now + s) for s in range(1, 21)], evaluation(20, now + 20)]
    record(
        folder,
        settings_for(folder, store),
        [*first, {"kind": "end", "time": now + 21, "status": "failed", "reason": "bug"}],
    )
    run = mlflow_run(store, folder)
    assert (run.info.status, run.data.tags["stop_reason"]) == ("FAILED", "bug")

    again = [
        start(now + 50),
        {"kind": "resume", "time": now + 51, "from_step": 10, "checkpoint": "c", "reason": "asked"},
    ]
    again += [{**commit(s, now + 50 + s), "loss": 7.0} for s in range(11, 31)] + [evaluation(20, now + 70)]
    record(folder, settings_for(folder, store, params={"a": "2", "b": "3"}), again)
    run = mlflow_run(store, folder)
    losses = history(store, run.info.run_id, "train/loss")
    assert sorted(s for s, _ in losses) == list(range(1, 31))
    assert all((value == 7.0) == (step > 20) for step, value in losses)
    assert len(history(store, run.info.run_id, "val/loss")) == 1
    assert run.info.status == "RUNNING"
    assert run.data.params == {"a": "1", "b": "3"}
    assert run.data.tags["resumed.a"] == "1 -> 2"


def test_points_appear_while_the_run_goes(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.tracking.recorder.REPORT_EVERY_S", 0.0)
    folder = new_folder(tmp_path, "live")
    ledger = Ledger(folder.ledger)
    recorder = Recorder(folder, settings_for(folder, store))
    began = time.monotonic()
    recorder.start()
    assert time.monotonic() - began < 0.5, "starting must not wait for MLflow"
    ledger.append([start(time.time() - 3), commit(1, time.time() - 2)])
    wait_until(lambda: recorder.sent_step == 1, 30, "the first point")
    ledger.append([commit(2, time.time())])
    wait_until(lambda: recorder.sent_step == 2, 5, "the second point")
    assert [s for s, _ in history(store, folder.read()["mlflow"]["run_id"], "train/loss")] == [1, 2]
    report = Path(mlflow_run(store, folder).info.artifact_uri) / "report.html"
    wait_until(report.exists, 10, "a report while the run goes")
    ledger.append([commit(3, time.time()), {"kind": "end", "status": "stopped", "reason": "Ctrl-C"}])
    assert recorder.close(deadline_s=20) == 0
    assert mlflow_run(store, folder).info.status == "KILLED"


def test_values_that_are_not_finite_do_not_stop_the_record(tmp_path: Path, store: str) -> None:
    folder = new_folder(tmp_path, "nan")
    values = [2.0, math.nan, math.inf]
    record(folder, settings_for(folder, store), [{**commit(i, 10.0 + i), "loss": v} for i, v in enumerate(values, 1)])
    kept = dict(history(store, folder.read()["mlflow"]["run_id"], "train/loss"))
    assert kept[1] == 2.0
    assert math.isnan(kept[2])
    assert kept[3] > 1e300


def test_a_ledger_that_lost_its_end_is_read_from_its_beginning(tmp_path: Path, store: str) -> None:
    folder = new_folder(tmp_path, "shrunk")
    record(folder, settings_for(folder, store), [commit(s, 10.0 + s) for s in (1, 2, 3)])
    lines = folder.ledger.read_bytes().splitlines(keepends=True)
    folder.ledger.write_bytes(lines[0])
    record(folder, settings_for(folder, store), [{**commit(s, 30.0 + s), "note": "x" * 99} for s in (2, 3, 4)])
    losses = history(store, folder.read()["mlflow"]["run_id"], "train/loss")
    assert [s for s, _ in losses] == [1, 2, 3, 4]


def test_another_store_gets_the_whole_run(tmp_path: Path, store: str) -> None:
    folder = new_folder(tmp_path, "moved")
    record(folder, settings_for(folder, store), [commit(s, 10.0 + s) for s in (1, 2)])
    other = f"sqlite:///{tmp_path}/other.db"
    record(folder, settings_for(folder, other), [commit(3, 13.0)])
    assert [s for s, _ in history(other, folder.read()["mlflow"]["run_id"], "train/loss")] == [1, 2, 3]


def test_a_run_that_vanished_from_the_store_is_made_anew(tmp_path: Path, store: str) -> None:
    folder = new_folder(tmp_path, "vanished")
    record(folder, settings_for(folder, store), [commit(1, 11.0)])
    noted = folder.record.read_text().replace(folder.read()["mlflow"]["run_id"], "0" * 32)
    folder.record.write_text(noted)
    record(folder, settings_for(folder, store), [commit(2, 12.0)])
    # The run is found again by its tag, and the replay of step 1 is the same point, not a second one.
    assert [s for s, _ in history(store, folder.read()["mlflow"]["run_id"], "train/loss")] == [1, 2]


def test_a_store_that_cannot_be_opened_costs_nothing(tmp_path: Path) -> None:
    folder = new_folder(tmp_path, "blocked")
    (tmp_path / "file").write_text("")
    settings = settings_for(folder, f"sqlite:///{tmp_path}/file/mlflow.db")
    ledger = Ledger(folder.ledger)
    ledger.append([start(1.0), commit(1, 2.0), evaluation(1, 2.5)])
    ledger.close()
    recorder = Recorder(folder, settings)
    recorder.start()
    wait_until(lambda: recorder.problem is not None, 30, "the complaint")
    assert recorder.close(deadline_s=10) == 3
    assert folder.report.exists(), "the report needs no MLflow"
    with pytest.raises(ShoalError, match=r"does not take the record of blocked.*3 entries wait"):
        send_pending(folder)
    (tmp_path / "file").unlink()
    assert send_pending(folder) == 3
    assert send_pending(folder) == 0
    assert [s for s, _ in history(settings.tracking_uri, folder.read()["mlflow"]["run_id"], "train/loss")] == [1]


def test_send_pending_refuses_what_it_cannot_send(tmp_path: Path, store: str) -> None:
    folder = new_folder(tmp_path, "live-2")
    with pytest.raises(ConfigError, match=r"has no record\.json"):
        send_pending(folder)
    recorder = Recorder(folder, settings_for(folder, store))
    recorder.start()
    wait_until(lambda: "mlflow" in folder.read(), 30, "the connection")
    with pytest.raises(ConfigError, match="is being sent to MLflow by another process"):
        send_pending(folder)
    recorder.close()


def test_the_record_hides_passwords(tmp_path: Path) -> None:
    folder = new_folder(tmp_path, "secret")
    recorder = Recorder(folder, settings_for(folder, "http://me:hunter2@127.0.0.1:9"))
    recorder.start()
    wait_until(lambda: recorder.problem is not None, 30, "the complaint")
    recorder.close(deadline_s=0)
    assert "hunter2" in folder.record.read_text(), "needed to send later"
    assert stat.S_IMODE(folder.record.stat().st_mode) == 0o600


def test_runs_of_dead_processes_are_closed(tmp_path: Path, store: str) -> None:
    me = owner()
    dead, alive, done = (new_folder(tmp_path, name) for name in ("dead", "alive", "done"))
    for folder in (dead, alive, done):
        record(folder, settings_for(folder, store), [start(10.0), commit(1, 11.0)])
    alive.update(owner=me)
    done.update(owner={**me, **NOBODY}, status="finished")
    dead.update(owner={**me, **NOBODY})
    ledger = Ledger(dead.ledger)
    ledger.append([commit(2, 12.0)])
    ledger.close()
    assert reap(tmp_path, only="http://elsewhere") == []
    assert reap(tmp_path) == ["dead"]
    assert reap(tmp_path) == []
    run = mlflow_run(store, dead)
    assert (run.info.status, dead.read()["status"]) == ("KILLED", "died")
    assert "process died" in run.data.tags["stop_reason"]
    assert [s for s, _ in history(store, run.info.run_id, "train/loss")] == [1, 2], "what was unsent is sent first"
    assert mlflow_run(store, alive).info.status == "RUNNING"

    # It is started again after all, and the next run's recorder closes the one that dies then.
    resume = {"kind": "resume", "time": 20.0, "from_step": 1, "checkpoint": "c", "reason": "asked"}
    dead.update(status="running", owner=me)
    record(dead, settings_for(dead, store), [resume, commit(2, 21.0), commit(3, 22.0)])
    run = mlflow_run(store, dead)
    assert run.info.status == "RUNNING"
    assert "stop_reason" not in run.data.tags
    dead.update(owner={**me, **NOBODY})
    record(alive, settings_for(alive, store), [commit(2, 12.0)])
    assert mlflow_run(store, dead).info.status == "KILLED"


def test_owners() -> None:
    me = owner()
    assert is_alive(me)
    assert not is_alive({**me, "started": me["started"] - 100}), "the number was given to another process"
    assert not is_alive({**me, **NOBODY})
    assert is_alive({**me, **NOBODY, "host": "elsewhere"}), "cannot be known from here"
    assert is_alive(None)
