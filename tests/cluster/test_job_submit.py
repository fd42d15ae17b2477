"""`ray job submit` and `shoal submit` on the head of `ray start --head`: followed, stopped, abandoned."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

BIN = Path(sys.executable).parent
SECRET = "not-for-anybody-7f3a"
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
WITH_MODULES = """
import colours
from mine import job

assert colours.TEAL == 3
"""
GUARDED = """
from pathlib import Path

from mine import job

if "working_dir_files" in Path.cwd().parts:
    assert not any(Path(name).exists() for name in (".env", "runs", "large")), "they stay at home"
"""
SWEEP = """
from shoal.tuning import Sweep, choice

sweep = Sweep(job="mine.py", overrides=("budget.steps=4",), space={"optimizer.lr": choice(1e-3, 1e-2)}, trials=2)
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
    (tmp_path / "work" / "jobs" / "sweeping.py").write_text(SWEEP)
    (tmp_path / "work" / "jobs" / "guarded.py").write_text(GUARDED)
    (tmp_path / "work" / "jobs" / "with_modules.py").write_text(WITH_MODULES)
    (tmp_path / "modules" / "colours").mkdir(parents=True)
    (tmp_path / "modules" / "colours" / "__init__.py").write_text("TEAL = 3")
    for stays in (".env", "runs/old/ledger.jsonl", "large/data.bin"):
        (tmp_path / "work" / stays).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "work" / stays).write_text(f"TOKEN={SECRET}")
    (tmp_path / "work" / "tests" / "support").mkdir(parents=True)
    (tmp_path / "work" / "tests" / "support" / "sabotage.py").write_text((support / "sabotage.py").read_text())
    return tmp_path / "work"


def committed(folder: Path) -> bool:
    ledger = folder / "ledger.jsonl"
    return ledger.exists() and '"commit"' in ledger.read_text()


def submit(
    environment: dict[str, str], project: Path, name: str, recipe: str, *arguments: str, flags: Sequence[str] = ()
) -> str:
    entry = ["shoal", "train", recipe, "--json", *arguments]
    done = jobs(environment, "submit", *flags, f"--submission-id={name}", f"--working-dir={project}", "--", *entry)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def shoal(environment: dict[str, str], project: Path, *arguments: str) -> subprocess.Popen[str]:
    """`shoal submit` as a user types it, with secrets in the environment, `ray` on another cluster than --address."""
    own = {**environment, "RAY_ADDRESS": "http://127.0.0.1:1", "HF_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    return subprocess.Popen(
        [str(BIN / "shoal"), "submit", *arguments, "--address", environment["RAY_ADDRESS"]],
        env=own, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=280)
    assert process.returncode == code, said[-5000:]
    return said


def test_a_submitted_recipe_trains_to_its_end(head: dict[str, str], project: Path, tmp_path: Path) -> None:
    modules = json.dumps(
        {"py_modules": [str(tmp_path / "modules" / "colours")]}
    )  # beside those that Shoal ships itself
    flags = [f"--runtime-env-json={modules}"]
    said = submit(head, project, "to-the-end", "jobs/with_modules.py", "--runs", str(tmp_path / "runs"), flags=flags)
    assert "succeeded" in said
    (folder,) = (tmp_path / "runs").glob("digits-*")
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


def test_a_stopped_job_checkpoints_and_says_so(head: dict[str, str], project: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    asked = ["jobs/mine.py", "--runs", str(runs), "--set", "budget.steps=100000"]
    submit(head, project, "to-be-stopped", *asked, flags=["--no-wait"])
    wait_for("the first commit", lambda: any(committed(p) for p in runs.glob("digits-*")), 180)
    assert jobs(head, "stop", "to-be-stopped").returncode == 0
    (folder,) = runs.glob("digits-*")
    wait_for("the end of the run", lambda: json.loads((folder / "run.json").read_text())["status"] == "stopped", 60)
    assert list(folder.glob("checkpoints/*/manifest.json"))
    said = jobs(head, "status", "to-be-stopped")
    assert "stopped" in (said.stdout + said.stderr).lower(), said


def test_a_submitted_run_is_followed_and_stopped_and_tells_nobody_a_secret(
    head: dict[str, str], project: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "followed"
    asked = ["jobs/guarded.py", "--runs", str(folder.parent), "--name", "followed", "--env", "COLOUR=teal"]
    asked += ["--exclude", "large", "--set", "budget.steps=100000"]
    sender = shoal(head, project, *asked)
    wait_for("the first commit", lambda: committed(folder), 180)
    (known,) = ended(shoal(head, project, "--status", "followed", "--json")).splitlines()
    assert json.loads(known)["status"] == "running"
    assert "stopping after this step" in ended(shoal(head, project, "--stop", "followed"))
    said = ended(sender, code=130)
    assert "stopped after" in said
    assert list(folder.glob("checkpoints/*/manifest.json"))
    listed = ended(shoal(head, project, "--list"))
    assert "followed" in listed
    with urllib.request.urlopen(f"{head['RAY_ADDRESS']}/api/jobs/followed") as answer:
        told = answer.read().decode()
    assert "COLOUR" in told
    written = [p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()]
    assert SECRET not in "".join([said, listed, told, *written])
    assert "job of that name" in ended(shoal(head, project, *asked), code=2)
    assert "is over: it stopped" in ended(shoal(head, project, "--stop", "followed"), code=2)


def test_a_sweep_outlives_the_process_that_sent_it(head: dict[str, str], project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "sweeps" / "swept"
    asked = ["--sweep", "jobs/sweeping.py", "--runs", str(tmp_path / "runs"), "--name", "swept", "--exclude", "large"]
    sender = shoal(head, project, *asked)
    wait_for("the first trial", lambda: any(committed(p) for p in (tmp_path / "runs").glob("swept-*")), 180)
    sender.kill()
    sender.wait(10)
    ended(shoal(head, project, "--follow", "swept"))
    assert len(json.loads((folder / "sweep.json").read_text())["trials"]) == 2
