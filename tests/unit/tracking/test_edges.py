"""Settings, facts, the list of runs, and links: the small edges of the record."""

from __future__ import annotations

import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.run_folder import RunFolder, write_json
from shoal.tracking.facts import environment_tags, git_tags
from shoal.tracking.ledger import Ledger
from shoal.tracking.owner import owner
from shoal.tracking.runs import list_runs, newest_run
from shoal.tracking.settings import DatasetEntry, RecordSettings
from shoal.tracking.ui import chart_link, free_port, record_link, serve_ui, where_recorded
from tests.support.ledgers import churning_run, commit, evaluation, start
from tests.support.mlflow_store import new_folder

pytestmark = pytest.mark.unit


def settings(tmp_path: Path, uri: str = "") -> RecordSettings:
    return RecordSettings(runs=tmp_path, experiment="gpt", run_name="gpt-1", tracking_uri=uri)


def test_places_are_absolute_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings(Path("runs")).tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert settings(Path("runs")).artifact_root == f"{tmp_path}/runs/artifacts"
    assert settings(Path("runs"), "sqlite:///here.db").tracking_uri == f"sqlite:///{tmp_path}/here.db"
    assert settings(Path("runs"), "http://host:5000/").tracking_uri == "http://host:5000"
    assert settings(Path("runs"), "http://host:5000").artifact_root is None


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns", "sqlite:///", "http://", "ftp://host"])
def test_places_that_hold_no_record_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match="use") as caught:
        settings(tmp_path, uri)
    assert repr(uri) in str(caught.value)


def test_settings_travel(tmp_path: Path) -> None:
    data = DatasetEntry(name="d", digest="0" * 64, source="/d")
    whole = RecordSettings(
        runs=tmp_path, experiment="e", run_name="r", params={"a": "1"}, tags={"t": "2"}, dataset=data
    )
    assert RecordSettings.from_json(whole.to_json()) == whole
    assert pickle.loads(pickle.dumps(whole)) == whole


def test_the_code_is_named_by_its_commit(tmp_path: Path) -> None:
    assert git_tags(tmp_path) == {}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q", "-b", "main"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    tags = git_tags(tmp_path)
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["mlflow.source.git.branch"] == "main"
    assert tags["mlflow.source.git.dirty"] == "true"


def test_environment_tags_import_nothing_heavy(tmp_path: Path) -> None:
    tags = environment_tags(tmp_path, command="shoal train jobs/gpt.py", engine="zero", data_digest="abc")
    assert tags["shoal.engine"] == "zero"
    assert tags["version.torch"]
    assert tags["shoal.data_digest"] == "abc"
    code = "import sys, shoal.tracking.recorder, shoal.tracking.runs, shoal.tracking.ui, shoal.tracking.reaper\n"
    code += "print([m for m in ('mlflow', 'torch', 'ray', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def write(folder, entries) -> None:
    ledger = Ledger(folder.ledger)
    ledger.append(list(entries))
    ledger.close()


def test_runs_are_listed_with_how_they_stand(tmp_path: Path) -> None:
    now, me = time.time(), owner()
    write(new_folder(tmp_path, "old", started=now - 500, total_steps=400), churning_run(now - 500))
    write(new_folder(tmp_path, "now", started=now - 60, owner=me), [start(now - 60), commit(7, now - 1, workers=4)])
    back = [commit(s, now - 50 + s) for s in (1, 2, 3)] + [{"kind": "resume", "time": now - 40, "from_step": 2}]
    write(
        new_folder(tmp_path, "gone", started=now - 90, owner={**me, "pid": 2**22 + 1}), [*back, evaluation(2, now - 39)]
    )
    new_folder(tmp_path, "fresh", started=now)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    runs = list_runs(tmp_path)
    assert [(r.run_id, r.status, r.step) for r in runs] == [
        ("fresh", "running", 0),
        ("now", "running", 7),
        ("gone", "died", 2),
        ("old", "finished", 400),
    ]
    fresh, live, gone, old = runs
    assert fresh.loss is None
    assert live.workers == 4
    assert live.duration_s == pytest.approx(60, abs=5)
    assert gone.best_val_loss == evaluation(2, 0)["metrics"]["val/loss"]
    assert gone.duration_s == pytest.approx(51, abs=1)
    assert old.total_steps == 400
    assert not old.unsent
    write_json(RunFolder(tmp_path / "old").record, {"progress": {"offset": 10}})
    assert list_runs(tmp_path)[-1].unsent
    assert old.best_val_loss == pytest.approx(1.546, abs=1e-3)
    newest = newest_run(tmp_path)
    assert newest is not None
    assert newest.run_id == "fresh"
    assert list_runs(tmp_path / "none") == []


def test_links(tmp_path: Path) -> None:
    folder = new_folder(tmp_path, "r")
    assert record_link(folder, "http://h:1/") == "http://h:1"
    folder.update(mlflow={"uri": "http://h:1", "experiment_id": "3", "run_id": "ab"})
    assert record_link(folder, "http://h:1/").startswith("http://h:1/#/experiments/3/runs/ab")
    assert "compareRunsMode=CHART" in chart_link(folder, "http://h:1")
    assert where_recorded(folder).startswith("http://h:1/#/")
    folder.update(mlflow={"uri": "sqlite:////x/mlflow.db", "experiment_id": "3", "run_id": "ab"})
    assert where_recorded(folder) == f"shoal ui --runs {tmp_path}"


def test_the_ui_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no record at .*train something first"):
        serve_ui(tmp_path)
    with pytest.raises(ConfigError, match="not an address of this machine"):
        free_port("192.0.2.1", 5000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 50
