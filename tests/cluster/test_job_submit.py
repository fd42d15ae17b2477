"""`ray job submit` on a head that was started with `ray start --head`, and `ray job stop`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent
RECIPE = """
import shoal
from tests.support.sabotage import Digits

job = shoal.Job(
    name="digits",
    task=Digits(),
    data=shoal.Data(train="builtin:digits", cpus=0.5),
    batch=shoal.Batch(size=32, virtual_shards=8),
    budget=shoal.Budget(steps=8),
    workers=shoal.Workers(min=2, max=2),
    evaluation=shoal.Evaluation(every=None, samples=64),
    checkpoints=shoal.Checkpoints(every=None, export=False),
)
"""


def free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


def wait_for(what: str, found: Callable[[], object], deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not found():
        assert time.monotonic() < end, f"{what} did not come within {deadline_s:g}s"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def head(no_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head with its dashboard; yields the environment for clients."""
    gcs, dashboard, agent, client, metrics = free_ports(5)
    session = tmp_path_factory.mktemp("r")
    address = f"http://127.0.0.1:{dashboard}"
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": address,
        "RAY_worker_niceness": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    }
    command = [
        *[str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=4", f"--port={gcs}", f"--temp-dir={session}"],
        *[
            f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}",
            f"--metrics-export-port={metrics}",
        ],
        *[f"--ray-client-server-port={client}", "--object-store-memory=300000000", "--disable-usage-stats"],
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # A head of its own: RAY_ADDRESS is for the clients.
    own = {k: v for k, v in environment.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=own, start_new_session=True, **quiet)  # type: ignore[call-overload]

    def up() -> bool:
        try:
            socket.create_connection(("127.0.0.1", dashboard), timeout=1).close()
        except OSError:
            return False
        return jobs(environment, "list").returncode == 0

    wait_for("the head's dashboard", up, 120)
    yield environment
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def jobs(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder as a user would submit it: a recipe and a helper package."""
    support = Path(__file__).parents[1] / "support"
    (tmp_path / "work" / "jobs").mkdir(parents=True)
    (tmp_path / "work" / "jobs" / "mine.py").write_text(RECIPE)
    (tmp_path / "work" / "tests" / "support").mkdir(parents=True)
    (tmp_path / "work" / "tests" / "support" / "sabotage.py").write_text((support / "sabotage.py").read_text())
    return tmp_path / "work"


def submit(environment: dict[str, str], project: Path, name: str, *arguments: str, wait: bool = True) -> str:
    flags = [] if wait else ["--no-wait"]
    entry = ["shoal", "train", "jobs/mine.py", "--json", *arguments]
    done = jobs(environment, "submit", *flags, f"--submission-id={name}", f"--working-dir={project}", "--", *entry)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_submitted_recipe_trains_to_its_end(head: dict[str, str], project: Path, tmp_path: Path) -> None:
    said = submit(head, project, "to-the-end", "--runs", str(tmp_path / "runs"))
    assert "succeeded" in said
    (folder,) = (tmp_path / "runs").glob("digits-*")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_stopped_job_checkpoints_and_says_so(head: dict[str, str], project: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    submit(head, project, "to-be-stopped", "--runs", str(runs), "--set", "budget.steps=100000", wait=False)
    wait_for("the first commit", lambda: any('"commit"' in p.read_text() for p in runs.glob("*/ledger.jsonl")), 180)
    assert jobs(head, "stop", "to-be-stopped").returncode == 0
    (folder,) = runs.glob("digits-*")
    wait_for("the end of the run", lambda: json.loads((folder / "run.json").read_text())["status"] == "stopped", 60)
    assert list(folder.glob("checkpoints/*/manifest.json"))
    said = jobs(head, "status", "to-be-stopped")
    assert "stopped" in (said.stdout + said.stderr).lower(), said
