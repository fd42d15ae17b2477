"""The page from kept logs, and which runs make a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.churn.__main__ import combinations
from benchmarks.churn.eventlog import EventLog, read_log
from benchmarks.churn.page import calm_table, changes_table, goodput_table, read_runs, settings_list

pytestmark = pytest.mark.unit


def keep(
    raw: Path, name: str, events: list[dict[str, Any]], parameters: list[float], *, steps: int = 40, done: int = 40
) -> None:
    arm = name.split(".")[0]
    run = {"kind": "run", "t": 0.0, "steps": steps, "batch": 10, "load": 1.0, "arm": arm, "settings": {"k": arm}}
    log = [
        run,
        {"kind": "ready", "t": 1.0, "workers": 2},
        *events,
        {"kind": "end", "t": 99, "steps": done, "digest": ""},
    ]
    (raw / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    np.save(raw / f"{name}.npy", np.array(parameters, np.float32))


def steps(every_s: float, count: int, view: str = "1") -> list[dict[str, Any]]:
    return [{"kind": "step", "t": 1 + i * every_s, "step": i, "view": view, "workers": 2} for i in range(1, count + 1)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Plain training does 10 samples in 1 s on any number of workers; Shoal the same, Ray Train a fourth of it."""
    for n in range(1, 5):
        keep(tmp_path, f"ddp.calm{n}.0", steps(1.0, 40), [3.0, 4.0])
    keep(tmp_path, "shoal.calm4.0", steps(1.25, 40), [1.0, 2.0])
    keep(tmp_path, "shoal.p3.0", steps(1.0, 40), [1.0, 2.0])
    keep(tmp_path, "ray-train.p3.0", steps(4.0, 17), [3.0, 4.5], steps=100, done=100)
    keep(tmp_path, "shoal-exact.p3.0", steps(4.0, 17), [3.0, 4.0], steps=100, done=17)
    keep(tmp_path, "shoal-zero2.p3.0", steps(4.0, 17), [3.0, 4.0])
    return tmp_path


def test_goodput_and_distance_are_those_of_the_runs(raw: Path) -> None:
    shoal, ray_train = goodput_table(read_runs(raw), ["shoal", "ray-train"]).splitlines()[2:]
    assert shoal.startswith("| shoal | 1.000 (1.000-1.000, n=1) | 4.0 | 0 | 0 | equal bits (n=1) |")
    assert ray_train.startswith("| ray-train | 0.249")
    assert "1.0e-01 away (n=1)" in ray_train


def test_what_cannot_be_compared_is_not(raw: Path) -> None:
    """A run that was broken off, and one whose own undisturbed run was not made: plain training's is none for it."""
    for n in range(1, 5):
        keep(raw, f"zero2.calm{n}.0", steps(1.0, 40), [3.0, 4.0])
    exact, sharded = goodput_table(read_runs(raw), ["shoal-exact", "shoal-zero2"]).splitlines()[2:]
    assert "| not finished |" in exact
    assert exact.count("away") == sharded.count("away") == sharded.count("equal") == 0


def test_speed_is_held_against_plain_training(raw: Path) -> None:
    (row,) = calm_table(read_runs(raw), ["shoal", "ray-train"]).splitlines()[2:]
    assert row.startswith("| shoal | 8.0 (8.0-8.0, n=1) | DDP: 10.0 (10.0-10.0, n=1) | 0.800 ")


def test_a_run_that_never_stood_is_told_and_not_counted(raw: Path) -> None:
    log = [
        {"kind": "run", "t": 0, "steps": 9, "batch": 10, "load": 0, "arm": "torchrun", "settings": {}},
        {"kind": "stuck", "t": 5, "why": "3 workers: not there after 90s"},
        {"kind": "end", "t": 6, "steps": 0, "digest": ""},
    ]
    (raw / "torchrun.one-by-one.0.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    assert "| torchrun | - | - | - | 1 |" in changes_table(read_runs(raw), ["torchrun"])


def test_settings_are_listed(raw: Path) -> None:
    assert settings_list(read_runs(raw), ["shoal"]) == "- `shoal`: k = shoal"


def test_nothing_happens_to_plain_training() -> None:
    assert list(combinations(["ddp", "shoal"], ["calm", "p3"])) == [
        ("ddp", "calm1"), ("ddp", "calm2"), ("ddp", "calm3"), ("ddp", "calm4"), ("shoal", "calm4"), ("shoal", "p3"),
    ]  # fmt: skip


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log("step", t=2.0, step=1)
    (tmp_path / "log-1.jsonl").write_text('{"t": 1.0, "kind": "begun"}\n{"t": 3.0, "ki')
    assert [e["kind"] for e in read_log(tmp_path)] == ["begun", "step"]
