"""`shoal lr-find`, whole: a curve with an end that the run itself finds, and one that breaks a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoal.cli import main

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

DIGITS = Path(__file__).parents[2] / "jobs" / "digits.py"
SMALL = ("--set", "workers.max=1", "--set", "task.network=mlp", "--set", "batch.size=32")


def lr_find(runs: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main.run(["lr-find", str(DIGITS), *SMALL, *arguments, "--json", "--runs", str(runs)]) == 0
    found = json.loads(capsys.readouterr().out)
    folder = Path(found["folder"])
    assert folder.parent == runs / "lr-find"
    assert json.loads((folder / "lr_find.json").read_text()) == found
    assert "<svg" in (folder / "lr_find.html").read_text() or len(found["rates"]) < 2
    assert not (folder / "checkpoints").exists()
    assert not (folder / "model").exists()
    return {**found, "entries": [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]}


def test_a_rate_is_found_and_the_run_ends_where_the_loss_diverges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--from", "1e-4", "--to", "1e20", "--steps", "2000", "--set", "optimizer.name=sgd")
    found = lr_find(tmp_path, capsys, *asked)
    assert 0.001 < found["suggestion"] < 1
    assert found["lowest"] < found["diverged_at"] < 1e3
    assert found["go_on"].endswith(f"--set optimizer.lr={found['suggestion']:g}")
    commits = [e for e in found["entries"] if e["kind"] == "commit"]
    assert [c["lr"] for c in commits[: len(found["rates"])]] == found["rates"]
    assert len(found["rates"]) < len(commits) < 2000, "it does not go on to the end"
    assert found["entries"][-1]["reason"] == "the loss has diverged"
    assert not [e for e in found["entries"] if e["kind"] == "evaluation"]
    assert main.run(["runs", "--json", "--runs", str(tmp_path)]) == 0
    assert not capsys.readouterr().out, "tests of rates are no runs"


def test_a_step_that_is_not_finite_is_the_end_of_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lr_find(tmp_path, capsys, "--from", "1e30", "--to", "1e38", "--steps", "20", "--set", "optimizer.name=sgd")
    assert found["entries"][-1]["status"] == "failed"
    assert found["diverged_at"] > found["rates"][-1]
    assert found["suggestion"] is None
    assert "too few to tell" in found["reason"]
