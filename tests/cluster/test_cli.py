"""The command as people and machines use it: a process of its own, its output, its signals, its exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.cluster

DIGITS = Path(__file__).parents[2] / "jobs" / "digits.py"
SMALL = ("--set", "workers.max=1", "--set", "task.network=mlp", "--set", "evaluation.every=none")


def started(*arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def lines(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def test_interrupted_and_resumed(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a long run, then the same run to its end with a smaller budget."""
    runs = ("--runs", str(tmp_path / "runs"))
    process = started("train", str(DIGITS), "--json", "--set", "budget.steps=100000", *SMALL, *runs)
    told = []
    interrupted = False
    for line in lines(process):
        told.append(line)
        if line["type"] == "status" and line["step"] >= 5 and not interrupted:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to everything that the command has started
            interrupted = True
    assert process.wait(60) == 130, process.stderr.read() if process.stderr else ""
    end = told[-1]
    assert (end["type"], end["status"], end["exit_code"]) == ("finished", "stopped", 130)
    assert any(line["type"] == "event" and line["kind"] == "stopping" for line in told)
    assert Path(end["checkpoint"]).is_dir()

    budget = ("--set", f"budget.steps={end['step'] + 20}")
    process = started("resume", end["run_id"], "--json", *budget, *runs)
    *_, last = lines(process)
    assert process.wait(60) == 0, process.stderr.read() if process.stderr else ""
    assert (last["status"], last["step"]) == ("finished", end["step"] + 20)
    assert {"val/loss", "val/accuracy"} <= set(last["metrics"])

    process = started("runs", "--json", *runs)
    listed = {line["run_id"]: line for line in lines(process)}
    assert process.wait(60) == 0
    assert listed[end["run_id"]]["status"] == "stopped"
    assert listed[last["run_id"]]["status"] == "finished"
    assert last["run_id"] != end["run_id"], "another budget is another schedule: a new run that starts from the old one"
