"""The page of a sweep: one file that needs nothing else, with what the ledger says, at 4 trials and at 400."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.job.schedules import Rex
from shoal.optim.schedules import factor
from shoal.tuning.ledger import FILE
from shoal.tuning.report import POINTS, SUMMARY, axes, report_data, space_in_words, thinned, write_report
from shoal.tuning.trials import SweepState, read
from tests.support.sweeps import RUNGS, STEPS, entries, state_of, write_sweep

pytestmark = pytest.mark.unit

BEGAN = 1_795_000_000.0


def page_and_data(folder: Path) -> tuple[str, dict]:
    page = write_report(folder, folder / FILE).read_text()
    (blob,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return page, json.loads(blob, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))


def sweep(count: int) -> SweepState:
    return state_of(entries(count, BEGAN, Path("runs")))


def test_the_page_says_what_happened(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, 24, began=BEGAN)
    page, data = page_and_data(folder)
    assert not re.search(r"""(src|href)\s*=|@import|url\(\s*["']?http|fetch\(|XMLHttpRequest""", page)
    assert not re.search(r"/\*(STYLE|CHARTS|PARTS|PAGE)\*/|@(DATA|TITLE)@", page)
    state = read(folder / FILE)
    best = min((r for r in state.rows if r.best is not None and r.status != "failed"), key=lambda r: r.best)
    assert data["best"]["number"] == best.number
    assert data["best"]["value"] == pytest.approx(best.best, rel=1e-5)
    assert data["best"]["command"] == f"shoal train {folder / 'best.py'}"
    assert data["best"]["before"]["optimizer.lr"] == "0.001"
    assert data["counts"] == state.counts
    assert [t["number"] for t in data["trials"]] == list(range(24))
    assert {t["rank"] for t in data["trials"]} == {None, *range(23)}, "the failed one has no rank"
    assert data["rungs"] == list(RUNGS)
    assert (data["trials"][2]["status"], data["trials"][2]["reason"][:12]) == ("failed", "RuntimeError")
    assert data["history"]["best"][-1] == pytest.approx(best.best, rel=1e-5)
    assert data["history"]["seconds"] == sorted(data["history"]["seconds"])
    assert data["cost"]["joules"] == pytest.approx(sum(r.joules or 0.0 for r in state.rows))
    for trial, row in zip(data["trials"], state.rows, strict=True):
        assert trial["x"] == [p.samples for p in row.curve]
        assert trial["y"] == [None if math.isnan(p.value) else pytest.approx(p.value, rel=1e-4) for p in row.curve]
    summary = json.loads((folder / SUMMARY).read_text())
    assert summary["best"] == best.number
    assert [t["fields"] for t in summary["trials"]] == [r.fields for r in state.rows]


def test_learning_rates_are_those_of_the_runs(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, 24, began=BEGAN)
    _, data = page_and_data(folder)
    state = read(folder / FILE)
    assert [s["number"] for s in data["schedules"]] == [r.number for r in state.ranked[:5]]
    drawn = next(s for s in data["schedules"] if s["family"] == "Rex")
    fields = state.rows[drawn["number"]].fields
    schedule = Rex(warmup=fields["schedule.warmup"], final=fields["schedule.final"])
    for x, y in zip(drawn["x"], drawn["y"], strict=True):
        step = round(x * STEPS)
        assert y == pytest.approx(fields["optimizer.lr"] * factor(schedule, step / STEPS), rel=2e-3)
    assert (drawn["x"][0], drawn["x"][-1]) == (pytest.approx(1 / STEPS, rel=1e-3), 1.0)


@pytest.mark.parametrize("count", [1, 4, 400])
def test_the_page_stays_small(tmp_path: Path, count: int) -> None:
    page, data = page_and_data(write_sweep(tmp_path, count, began=BEGAN, with_runs=False))
    assert len(data["trials"]) == count
    assert len(page) < 60_000 + 1_000 * count
    assert data["schedules"] == [], "without the runs' folders there is nothing to draw them from"


def test_a_sweep_in_which_nothing_happened_yet_has_a_page(tmp_path: Path) -> None:
    opened = [e for e in entries(4, BEGAN, tmp_path) if e["kind"] == "opened"]
    data = report_data(state_of(opened))
    assert (data["best"], data["trials"], data["history"]["best"]) == (None, [], [])
    assert [a["name"] for a in data["axes"]][:3] == ["optimizer.lr", "batch.size", "schedule"]


def test_axes_are_those_of_the_space_and_of_what_was_tried() -> None:
    state = sweep(24)
    found = {a["name"]: a for a in axes(state)}
    assert list(found) == ["optimizer.lr", "batch.size", "schedule", "schedule.warmup", "schedule.final"]
    assert found["optimizer.lr"] == {
        "name": "optimizer.lr", "kind": "number", "log": True, "whole": False, "low": 1e-4, "high": 3e-2,
    }  # fmt: skip
    assert found["batch.size"]["values"] == [16, 32, 64, 128]
    assert found["schedule.warmup"]["high"] == 0.2, "four families have it; it is one axis"
    state.rows[0].fields |= {"batch.size": 8, "seed": 3, "task.depth": 1e-6}
    state.rows[1].fields |= {"seed": 4, "task.depth": 1.0}
    wider = {a["name"]: a for a in axes(state)}
    assert wider["batch.size"]["values"] == [8, 16, 32, 64, 128], "an older space had more"
    assert (wider["seed"]["kind"], wider["seed"]["whole"], wider["task.depth"]["log"]) == ("number", True, True)


def test_the_space_in_words() -> None:
    facts = sweep(4).facts
    words = space_in_words(facts)
    assert words["optimizer.lr"] == "0.0001 to 0.03, log scale"
    assert words["batch.size"] == "one of 16, 32, 64, 128"
    assert words["schedule.final"] == "0 to 0.3 (with schedule=Rex)"
    assert words["schedule.warmup"] == "0 to 0.2 (with schedule=Constant or Cosine or Linear or Rex)"


def test_the_highest_wins_where_the_mode_says_so() -> None:
    state = sweep(12)
    state.facts = replace(state.facts, mode="max")
    order = [row.best for row in state.ranked]
    assert order == sorted(order, key=lambda v: -(v or 0.0))
    best = [v for v in report_data(state)["history"]["best"] if v is not None]
    assert best == sorted(best)


def test_long_curves_keep_their_ends() -> None:
    curve = sweep(2).rows[0].curve * 40
    kept = thinned(curve, POINTS)
    assert len(kept) == POINTS
    assert (kept[0], kept[-1]) == (curve[0], curve[-1])


def test_hostile_words_stay_text(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, 4, began=BEGAN, with_runs=False)
    text = (folder / FILE).read_text().replace("CUDA out of memory", "</script><script>alert(1)</script>")
    (folder / FILE).write_text(text)
    page, data = page_and_data(folder)
    assert "<script>alert" not in page
    assert "alert(1)" in data["trials"][2]["reason"]
