"""The report: one file that needs nothing else, true to the effective history, safe against what users write."""

from __future__ import annotations

import json
import math
import re
from array import array
from pathlib import Path

import pytest

from shoal.run_folder import RunFolder, write_json
from shoal.tracking.changes import describe
from shoal.tracking.history import History, smooth
from shoal.tracking.ledger import Ledger
from shoal.tracking.report import POINTS, write_report
from tests.support.ledgers import change, churning_run, commit, cost, departure, view

pytestmark = pytest.mark.unit


def page_and_data(folder: RunFolder) -> tuple[str, dict]:
    page = write_report(folder).read_text()
    (blob,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return page, json.loads(blob, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def folder_with(tmp_path: Path, entries, **run) -> RunFolder:
    folder = RunFolder(tmp_path / "gpt-1")
    folder.path.mkdir()
    folder.update(**{"name": "gpt", "status": "finished", "total_steps": 400, **run})
    ledger = Ledger(folder.ledger)
    ledger.append(list(entries))
    ledger.close()
    return folder


def test_the_report_needs_nothing_else(tmp_path: Path) -> None:
    page, _ = page_and_data(folder_with(tmp_path, churning_run(1_795_000_000.0)))
    assert not re.search(r"""(src|href)\s*=|@import|url\(\s*["']?http|fetch\(|XMLHttpRequest""", page)
    assert re.findall(r"https?://[^\s\"']+", page) == ["http://www.w3.org/2000/svg"]
    assert "/*STYLE*/" not in page
    assert "@DATA@" not in page


def test_the_report_says_what_happened(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, churning_run(1_795_000_000.0))
    write_json(folder.job, {"values": {"name": "gpt", "batch.size": "64"}, "run_again": "shoal train x.py"})
    _, data = page_and_data(folder)
    assert data["status"] == "finished"
    assert data["headline"]["step"] == 400
    assert data["headline"]["lost"] == 1
    assert data["headline"]["redone"] == 3
    assert (data["headline"]["fewest"], data["headline"]["most"]) == (2, 4)
    assert data["headline"]["best"] == pytest.approx(
        min(e["metrics"]["val/loss"] for e in data["evaluations"]), rel=1e-5
    )
    assert data["curves"]["step"] == list(range(1, 401)), "rolled-back steps are not drawn twice"
    assert [v["size"] for v in data["views"]] == [2, 4, 3, 4, 3]
    assert data["parameters"] == {"name": "gpt", "batch.size": "64", "run again": "shoal train x.py"}
    assert {e["kind"] for e in data["events"]} == {"start", "view", "loss", "resume", "end"}
    assert [(c["what"], c["members"], c["step"], c["steps_redone"]) for c in data["changes"]] == [
        ("join", "w3, w4", 90, 0), ("loss", "w4", 177, 3), ("join", "w5", 260, 0), ("leave", "w2", 340, 0),
    ]  # fmt: skip
    assert data["changes"][1]["detect"] == 0.12
    assert data["changes"][1]["idle"] == 0.56


def test_the_report_says_what_the_run_took_and_for_what(tmp_path: Path) -> None:
    run = list(churning_run(1_000.0))
    entries = [*run, departure("w2", 1_000.0, 1_060.0, lost=True), cost(200, 1_100.0), cost(400, 1_200.0)]
    _, data = page_and_data(folder_with(tmp_path, entries))
    told = data["cost"]
    assert told["total"]["joules"] == 3000.0
    assert told["wasted"]["joules"] == 0.3
    assert told["per_million"]["dollars"] == pytest.approx(2 / (400 * 64 * 128) * 1e6, rel=1e-3)
    assert [row["phase"] for row in told["phases"] if not row["useful"]] == ["start", "regroup", "recompute", "lost"]
    (left,) = data["departures"]
    assert (left["member"], left["lost"], left["wasted_s"]) == ("w2", True, 12.0)
    (tmp_path / "bare").mkdir()
    assert page_and_data(folder_with(tmp_path / "bare", run))[1]["cost"] is None


def test_what_a_change_tells_of_itself(tmp_path: Path) -> None:
    moves = {**view(1.0, 2, 2, 11, "w1 lost, w3 joined"), "joined": ["w3"], "lost": ["w1"], "left": []}
    _, data = page_and_data(folder_with(tmp_path, [moves, {"kind": "scale", "time": 2.0, "min": 2, "max": 6}]))
    assert data["events"][0]["text"] == "view 2 from step 11: w1, w2 (w3 joined; w1 lost)"
    assert data["events"][1]["text"] == "2 to 6 workers from now on"
    sparse = {"kind": "change", "time": 1.0, "view": 2, "what": "loss", "members": ["w1", "w2"], "steps_redone": 1}
    assert describe(sparse) == "w1, w2 were lost · 1 step computed again"
    assert describe(change(1.0, 2, "join", ["w3"], 41, 4)) == (
        "w3 joined: 4 workers from step 41 · regroup 0.20s, state 0.15s, resume 0.09s · 0.56s without a step"
    )


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    page, data = page_and_data(folder_with(tmp_path, [commit(1, 5.0)], name=evil))
    assert data["name"] == evil
    assert "<script>alert" not in page


def test_an_empty_run_has_a_report_too(tmp_path: Path) -> None:
    _, data = page_and_data(folder_with(tmp_path, [], status="running"))
    assert data["headline"]["step"] == 0
    assert data["curves"] == {}


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    entries = [{**commit(s, float(s)), "loss": v} for s, v in enumerate([2.0, math.nan, math.inf, 1.0], start=1)]
    _, data = page_and_data(folder_with(tmp_path, entries))
    assert data["curves"]["loss"] == [2.0, None, None, 1.0]
    assert None not in data["curves"]["smooth"]


def test_long_runs_give_reports_of_bounded_size(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [commit(s, s / 50, total=20_000) for s in range(1, 20_001)])
    page, data = page_and_data(folder)
    curves = data["curves"]
    assert {len(c) for c in curves.values()} == {POINTS}
    assert curves["step"][-1] == 20_000
    assert all(
        low <= mean <= high for low, mean, high in zip(curves["low"], curves["loss"], curves["high"], strict=True)
    )
    assert len(page) < 150_000


def test_smoothing_has_no_delay() -> None:
    line = array("d", [float(i) for i in range(200)])
    middle = smooth(line, 20)[80:120]
    assert all(abs(value - (80 + i)) < 0.5 for i, value in enumerate(middle))
    assert all(math.isnan(v) for v in smooth(array("d", [math.nan]), 5))


def test_history_counts_what_was_done_again() -> None:
    history = History().add([commit(s, float(s)) for s in (1, 2, 3)])
    history.add([{"kind": "resume", "time": 4.0, "from_step": 1}, commit(2, 5.0), commit(3, 6.0)])
    assert list(history.commits["step"]) == [1, 2, 3]
    assert list(history.commits["time"]) == [1.0, 5.0, 6.0]
    assert history.redone == 2
