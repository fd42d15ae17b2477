"""`shoal simulate`, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shoal.cli import main

pytestmark = pytest.mark.unit

TRACE = "0,add,a\n0,add,b\n0,add,c\n600000,remove,b\n900000,add,d\n3600000,remove,a\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def said(*arguments: object) -> Any:
    result = CliRunner().invoke(main.shoal, ["simulate", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main.run(["simulate", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_a_trace_at_any_size(trace: Path) -> None:
    found = said("--trace", trace, "--workers", 300)
    assert (found["nodes"], found["workers_per_node"], found["workers"]) == (3, 100, 300)
    assert found["seconds"] == 3600.0
    for method in found["methods"]:
        seconds = method["worker_seconds"]
        assert sum(seconds.values()) == pytest.approx(2 * seconds["available"])
        assert seconds["available"] == pytest.approx(100 * (3600 + 600 + 3600 + 2700))
        assert "dollars" not in method
    in_place, _, restart = found["methods"]
    assert in_place["goodput"] > restart["goodput"]
    assert found["best"]["checkpoint_restart"]["between_s"] == 1800.0
    assert said("--trace", trace, "--workers", 2)["workers"] == 2


def test_money(trace: Path) -> None:
    found = said("--trace", trace, "--workers", 3, "--instance", "p4d.24xlarge", "--market", "on-demand")
    assert found["dollars_per_worker_hour"] == pytest.approx(21.957642 / 8)
    (method, *_) = found["methods"]
    assert method["dollars"] == pytest.approx(method["worker_seconds"]["available"] / 3600 * 21.957642 / 8)
    assert method["dollars_wasted"] == pytest.approx(method["dollars"] * (1 - method["goodput"]))
    whole = said("--trace", trace, "--instance", "m5.xlarge", "--market", "on-demand")
    assert whole["dollars_per_worker_hour"] == pytest.approx(0.192)


def test_chance_has_a_seed() -> None:
    one = ("--mtbf", 0.5, "--workers", 64, "--hours", 6)
    assert said(*one) == said(*one)
    assert said(*one) != said(*one, "--seed", 1)


def test_costs_can_be_replaced_and_tell_their_sources() -> None:
    base = said("--mtbf", 0.5, "--workers", 64, "--hours", 6)
    slow = said("--mtbf", 0.5, "--workers", 64, "--hours", 6, "--cost", "detect_s=200")
    assert slow["methods"][0]["goodput"] < base["methods"][0]["goodput"]
    assert slow["costs"]["detect_s"] == 200.0
    listed = said("--costs", "--cost", "detect_s=3")
    assert listed["detect_s"]["value"] == 3.0
    assert set(listed) == set(base["costs"])
    assert all(c["source"] for c in listed.values())


@pytest.mark.parametrize("cost", ["detect=1", "detect_s", "detect_s=soon", "bandwidth=0", "detect_s=-1", "exchange=2"])
def test_wrong_costs(cost: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cost.partition("=")[0] in refused(capsys, "--mtbf", 1, "--cost", cost)


def test_mistakes_say_what_to_do(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "either --trace FILE or --mtbf HOURS" in refused(capsys)
    assert "either --trace FILE or --mtbf HOURS" in refused(capsys, "--mtbf", 1, "--trace", trace)
    assert "cannot be read" in refused(capsys, "--trace", tmp_path / "nowhere.csv")
    trace.write_text("0,add,a\n7,up,b\n")
    assert f"{trace}, line 2: 'up' is neither add nor remove" in refused(capsys, "--trace", trace)
    trace.write_text(TRACE)
    assert "--hours 9 is more than the 1 h" in refused(capsys, "--trace", trace, "--hours", 9)
    assert "--workers 0 must be more than 0" in refused(capsys, "--mtbf", 1, "--workers", 0)
    assert "--min-workers 9 is more than --workers 4" in refused(
        capsys, "--mtbf", 1, "--workers", 4, "--min-workers", 9
    )
    assert "no price of p4d" in refused(capsys, "--mtbf", 1, "--instance", "p4d")


def test_a_screen_of_text(trace: Path) -> None:
    lines = CliRunner().invoke(main.shoal, ["simulate", "--trace", str(trace), "--per-hour", "2"]).output.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 130
    assert lines[0] == f"{trace}: 2 nodes lost in 1 h, at most 3 at once"
    assert any(line.startswith("goodput") for line in lines)
    assert lines[-1].startswith("best checkpoints, restarts: each")
