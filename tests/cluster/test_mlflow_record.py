"""The record against real processes: servers that come and go, recorders that are killed, many that start at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from shoal.run_folder import RunFolder
from shoal.tracking.ledger import Ledger, read
from shoal.tracking.recorder import Recorder, send_pending
from shoal.tracking.ui import free_port
from tests.support.ledgers import commit, evaluation, start
from tests.support.mlflow_store import history, mlflow_run, new_folder, server, settings_for, wait_until

pytestmark = pytest.mark.cluster

RECORD = """
import sys, time
from pathlib import Path
from shoal.tracking.ledger import Ledger
from shoal.tracking.recorder import Recorder
from shoal.run_folder import RunFolder
from tests.support.ledgers import commit, start
from tests.support.mlflow_store import settings_for

path, first, last, pace = Path(sys.argv[1]), *map(float, sys.argv[2:])
folder = RunFolder(path)
ledger = Ledger(folder.ledger)
recorder = Recorder(folder, settings_for(folder))
recorder.start()
ledger.append([start(time.time())])
for step in range(int(first), int(last) + 1):
    ledger.append([commit(step, time.time(), step_s=pace)])
    time.sleep(pace)
ledger.append([{"kind": "end", "status": "finished", "reason": "done"}])
ledger.close()
sys.exit(recorder.close(120))
"""


def recording_process(folder: RunFolder, first: int, last: int, pace_s: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RECORD, str(folder.path), str(first), str(last), str(pace_s)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": f"{root}:{root / 'platform'}"})


def sent_step(folder: RunFolder) -> int:
    return json.loads(folder.record.read_text())["progress"]["step"] if folder.record.exists() else 0


def assert_recorded_once(uri: str, folder: RunFolder) -> None:
    """MLflow holds every committed step once, with the value of its first commit, and every second's means once."""
    run_id = folder.read()["mlflow"]["run_id"]
    commits = {e["step"]: e["loss"] for e in reversed(read(folder.ledger)[0]) if e["kind"] == "commit"}
    assert sorted(history(uri, run_id, "train/loss")) == sorted(commits.items())
    for key in ("work/step_s", "work/workers"):
        assert max(Counter(step for step, _ in history(uri, run_id, key)).values()) == 1


def test_a_server_that_starts_late_and_dies_in_the_middle(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "runs", "served")
    port = free_port("127.0.0.1", 15000 + os.getpid() % 20000)
    ledger = Ledger(folder.ledger)
    now = time.time() - 1000
    with server(tmp_path, port) as mlflow:
        recorder = Recorder(folder, settings_for(folder, mlflow.uri))
        recorder.start()
        ledger.append([start(now), *[commit(s, now + s) for s in range(1, 11)]])
        wait_until(lambda: recorder.problem is not None, 60, "noticing that no server is there")

        mlflow.start()
        wait_until(lambda: recorder.sent_step == 10, 120, "catching up with a server that came late")
        assert recorder.problem is None

        mlflow.kill()
        ledger.append([*[commit(s, now + s) for s in range(11, 21)], evaluation(20, now + 20)])
        wait_until(lambda: recorder.problem is not None, 60, "noticing that the server is gone")

        mlflow.start()
        wait_until(lambda: recorder.sent_step == 20, 120, "catching up with a server that came back")

        mlflow.kill()
        ledger.append([commit(21, now + 21), {"kind": "end", "time": now + 22, "status": "finished", "reason": "done"}])
        ledger.close()
        wait_until(lambda: recorder.problem is not None, 60, "noticing that the server is gone again")
        began = time.monotonic()
        assert recorder.close(deadline_s=30) == 2
        assert time.monotonic() - began < 15, "a server that is known to be down is not waited for"

        mlflow.start()
        wait_until(lambda: reachable(mlflow.uri), 120, "the server's start")
        assert send_pending(folder) == 2
        assert_recorded_once(mlflow.uri, folder)
        run = mlflow_run(mlflow.uri, folder)
        assert run.info.status == "FINISHED"
        assert len(history(mlflow.uri, run.info.run_id, "val/loss")) == 1
        assert any(a.path == "report.html" for a in artifacts(mlflow.uri, run.info.run_id))


def reachable(uri: str) -> bool:
    try:
        return urllib.request.urlopen(f"{uri}/health", timeout=1).status == 200
    except OSError:
        return False


def artifacts(uri: str, run_id: str):
    from mlflow import MlflowClient

    return MlflowClient(uri).list_artifacts(run_id)


def test_a_recorder_that_is_killed_repeats_and_loses_nothing(tmp_path: Path) -> None:
    folder = new_folder(tmp_path, "killed")
    for first, enough in ((1, 20), (10_001, 10_020)):
        process = recording_process(folder, first, first + 5000, 0.02)
        try:
            wait_until(lambda enough=enough: sent_step(folder) > enough, 60, "the first points")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert recording_process(folder, 20_001, 20_010, 0.01).wait(120) == 0
    assert_recorded_once(f"sqlite:///{tmp_path}/mlflow.db", folder)
    assert mlflow_run(f"sqlite:///{tmp_path}/mlflow.db", folder).info.status == "FINISHED"


def test_four_runs_start_at_once_on_a_new_database(tmp_path: Path) -> None:
    folders = [new_folder(tmp_path, f"run-{i}") for i in range(4)]
    processes = [recording_process(folder, 1, 5, 0.01) for folder in folders]
    assert [p.wait(180) for p in processes] == [0, 0, 0, 0]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for folder in folders:
        assert_recorded_once(uri, folder)
    assert len({folder.read()["mlflow"]["experiment_id"] for folder in folders}) == 1


SERVE = """
import sys
from pathlib import Path
from shoal.tracking.ui import serve_ui
sys.exit(serve_ui(Path(sys.argv[1]), port=int(sys.argv[2]), say=lambda text: print(text, flush=True)))
"""


def hear_signals() -> None:
    """Whoever runs the tests in the background of a shell has SIGINT ignored, and so would their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_the_ui_comes_up_and_ends_with_all_its_processes(tmp_path: Path, sign: signal.Signals) -> None:
    import psutil

    folder = new_folder(tmp_path, "shown", started=1.0)
    recorder = Recorder(folder, settings_for(folder))
    recorder.start()
    assert recorder.close(60) == 0
    port = free_port("127.0.0.1", 15000 + os.getpid() % 20000)
    command = [sys.executable, "-c", SERVE, str(tmp_path), str(port)]
    ui = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=hear_signals)
    try:
        assert ui.stdout is not None
        lines = [ui.stdout.readline() for _ in range(3)]
        assert f"http://127.0.0.1:{port}/#/experiments/1/runs?" in lines[0]
        assert folder.read()["mlflow"]["run_id"] in lines[1]
        assert reachable(f"http://127.0.0.1:{port}")
        children = psutil.Process(ui.pid).children(recursive=True)
        assert children
        ui.send_signal(sign)
        assert ui.wait(30) == 0
        _, left = psutil.wait_procs(children, timeout=10)
        assert not left
    finally:
        ui.kill()
        ui.wait()
