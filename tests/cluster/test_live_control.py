"""Runs that are looked at, changed, left and found again by other processes: the commands as people type them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.run_folder import RunFolder
from shoal.tracking.ledger import read

pytestmark = pytest.mark.cluster

DIGITS = str(Path(__file__).parents[2] / "jobs" / "digits.py")
LONG = ("--set", "budget.steps=1000000", "--set", "checkpoints.every=none", "--set", "evaluation.every=none")
SMALL = ("--set", "task.network=mlp", "--set", "data.cpus=0.5", "--set", "workers.max=2")


def shoal(runs: Path, *arguments: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shoal", *arguments, "--runs", str(runs)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s, env=environment())


def started(runs: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shoal", *arguments, "--runs", str(runs)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, text=True, env=environment(), start_new_session=True, **quiet)  # type: ignore[call-overload]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}


def told(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def members(runs: Path, run: str, state: str = "member") -> list[dict[str, Any]]:
    return [m for m in told(shoal(runs, "status", run, "--json"))["members"] if m["state"] == state]


def until(what: str, found: Callable[[], Any], deadline_s: float = 90.0) -> Any:
    end = time.monotonic() + deadline_s
    while not (value := found()):
        assert time.monotonic() < end, f"{what} did not come in {deadline_s:g}s"
        time.sleep(0.2)
    return value


def steps(runs: Path, run: str) -> int:
    path = RunFolder(runs / run).ledger
    return sum(e["kind"] == "commit" for e in read(path)[0])


@pytest.fixture
def address(ray_cluster: None) -> str:
    import ray

    return ray.get_runtime_context().gcs_address


@pytest.fixture
def killed() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_detached_run_is_changed_attached_to_and_proved(tmp_path: Path, address: str) -> None:
    job = ("--set", "numerics=exact", *LONG, "--set", "checkpoints.every=400", *SMALL)
    begun = shoal(tmp_path, "train", DIGITS, "--address", address, "--detach", "--name", "far", *job)
    assert begun.returncode == 0, begun.stderr
    assert "shoal attach far" in begun.stdout
    until("the first commits", lambda: steps(tmp_path, "far") > 3)
    until("two members", lambda: len(members(tmp_path, "far")) == 2)
    first, second = members(tmp_path, "far")
    assert (first["virtual_shards"], second["virtual_shards"]) == (4, 4)

    assert "another one is asked for" in shoal(tmp_path, "kill-worker", "far", first["member"]).stdout
    until("its replacement", lambda: len(members(tmp_path, "far")) == 2)
    assert "1 of 2 workers leave" in shoal(tmp_path, "scale", "far", "1").stdout
    until("one member", lambda: len(members(tmp_path, "far")) == 1)
    unknown = shoal(tmp_path, "kill-worker", "far", "w99")
    assert unknown.returncode == 2
    assert "there is no worker w99" in unknown.stderr
    again = shoal(tmp_path, "resume", "far", "--address", address)
    assert again.returncode == 2
    assert "shoal attach far" in again.stderr

    assert shoal(tmp_path, "audit", "far", "--no-content").returncode == 0, "while it runs, too"
    assert shoal(tmp_path, "stop", "far").returncode == 0
    attached = shoal(tmp_path, "attach", "far", "--json")
    assert attached.returncode == 130
    assert json.loads(attached.stdout.splitlines()[-1])["status"] == "stopped"
    proof = told(shoal(tmp_path, "audit", "far", "--json"))
    assert proof["clean"], proof["faults"]
    assert proof["changes"]["loss"] == 1
    assert proof["content"]["equal"] + proof["content"]["unknown"] == proof["steps"]["last"]

    last = proof["steps"]["last"]
    stretch = ("--steps", f"{last - 20}:{last}", "--workers", "2", "--address", address)
    same = told(shoal(tmp_path, "verify", "far", *stretch, "--json", timeout_s=240))
    assert same["identical"], same
    assert same["last"] == last
    assert same["state"]["recorded"] == same["state"]["again"]
    assert not (tmp_path / ".verify").exists()


def test_a_run_goes_on_without_its_command_if_that_was_wanted(
    tmp_path: Path, address: str, killed: list[subprocess.Popen[str]]
) -> None:
    arguments = ("--address", address, "--if-detached", "continue", "--name", "orphan", *LONG, *SMALL)
    command = started(tmp_path, "train", DIGITS, *arguments)
    killed.append(command)
    until("the first commits", lambda: (tmp_path / "orphan").exists() and steps(tmp_path, "orphan") > 3)
    command.kill()
    command.wait()
    done = steps(tmp_path, "orphan")
    until("further commits", lambda: steps(tmp_path, "orphan") > done + 20)
    follower = started(tmp_path, "attach", "orphan", "--json")
    killed.append(follower)
    assert follower.stdout is not None
    assert json.loads(follower.stdout.readline())["type"] == "started"
    follower.send_signal(2)
    last = json.loads(list(follower.stdout)[-1])
    assert (follower.wait(60), last["status"]) == (130, "stopped")
    assert Path(last["checkpoint"]).is_dir()
    gone = shoal(tmp_path, "scale", "orphan", "2")
    assert gone.returncode == 2
    assert "it was stopped" in gone.stderr


def test_a_cluster_of_the_commands_own_can_be_asked_by_others(
    tmp_path: Path, killed: list[subprocess.Popen[str]]
) -> None:
    command = started(tmp_path, "train", DIGITS, "--json", "--name", "near", *LONG, *SMALL)
    killed.append(command)
    until("the first commits", lambda: (tmp_path / "near").exists() and steps(tmp_path, "near") > 3)
    found = until("members", lambda: members(tmp_path, "near"))
    assert all(m["pid"] and m["device"] == "cpu" and m["address"] for m in found)
    assert shoal(tmp_path, "stop", "near").returncode == 0
    assert command.stdout is not None
    assert json.loads(list(command.stdout)[-1])["status"] == "stopped"
    said = told(shoal(tmp_path, "status", "near", "--json"))
    assert said["status"] == "stopped"
