"""Reading MLflow back, and starting its server, for tests of the record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.run_folder import RunFolder
from shoal.tracking.settings import RecordSettings
from shoal.tracking.store import ENVIRONMENT


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """All points of a metric as (step, value), in MLflow's order, duplicates included."""
    from mlflow import MlflowClient

    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(run_id, key)]


def mlflow_run(uri: str, folder: RunFolder):
    from mlflow import MlflowClient

    return MlflowClient(uri).get_run(folder.read()["mlflow"]["run_id"])


def new_folder(root: Path, name: str, **run) -> RunFolder:
    folder = RunFolder(root / name)
    folder.path.mkdir(parents=True)
    folder.update(**{"name": name, "status": "running", **run})
    return folder


def settings_for(folder: RunFolder, uri: str = "", **more) -> RecordSettings:
    return RecordSettings(
        runs=folder.root, experiment="tests", run_name=folder.run_id, tracking_uri=uri, **{"params": {"a": "1"}, **more}
    )


class Server:
    """A real `mlflow server` on one port, which can be started, killed, and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--default-artifact-root", str(self.folder / "artifacts")]
        environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def kill(self) -> None:
        """At once, with all its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def server(folder: Path, port: int) -> Iterator[Server]:
    made = Server(folder, port)
    try:
        yield made
    finally:
        made.kill()
