"""`shoal schedule`, as typed."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import shoal
from shoal.cli import main
from shoal.cli.charts import Axes, Line, blocks, svg
from shoal.job.store import save_job
from shoal.optim.schedules import learning_rate
from shoal.run_folder import RunFolder
from tests.support.plain_task import Plain

pytestmark = pytest.mark.unit

GPT = Path(__file__).parents[3] / "jobs" / "gpt.py"
DIGITS = GPT.with_name("digits.py")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main.shoal, ["schedule", *map(str, arguments)])


def said(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run(["schedule", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_the_numbers_are_those_of_the_training() -> None:
    found = said(GPT, "--set", "schedule=Rex(warmup=0.15)", "--set", "optimizer.lr=0.5", "--set", "budget.steps=40")
    assert (found["job"], found["peak"], found["total_steps"], found["steps"]) == ("gpt", 0.5, 40, 40)
    (rex,) = found["schedules"]
    assert rex["schedule"] == "Rex(warmup=0.15, final=0.1)"
    for what, step in (("first", 1), ("warmup_end", 6), ("middle", 20), ("last", 40)):
        right = learning_rate(0.5, shoal.Rex(warmup=0.15), step / 40)
        assert rex[what] == {"progress": step / 40, "step": step, "rate": pytest.approx(right)}
    assert len(rex["rates"]) == 101
    assert rex["rates"][-1] == rex["last"]["rate"] == 0.05
    assert rex["mean"] == pytest.approx(sum(rex["rates"]) / 101, rel=0.02)


def test_a_screen_of_text() -> None:
    lines = run(GPT).output.splitlines()
    assert lines[0] == "gpt: 300 steps, peak rate 0.004"
    assert lines[2] == "Cosine(warmup=0.1, final=0.05)"
    assert "warm-up ends  step 30       0.004" in run(GPT).output
    assert "last          step 300      0.0002" in run(GPT).output
    assert len(lines) < 24
    constant = run(GPT, "--set", "schedule=Constant(warmup=0)").output
    assert "warm-up ends" not in constant
    assert "100% of the peak" in constant


def test_budgets_that_only_the_data_would_turn_into_steps() -> None:
    found = said(DIGITS, "--set", "schedule.warmup=0.25")
    assert (found["total_steps"], found["epochs"]) == (None, 10)
    assert found["schedules"][0]["warmup_end"] == {"progress": 0.25, "step": None, "rate": pytest.approx(3e-3)}
    assert "warm-up ends  epoch 2.5     0.003" in run(DIGITS, "--set", "schedule.warmup=0.25").output
    assert said(DIGITS, "--set", "budget.samples=6401")["total_steps"] == 101


def test_several_are_compared_and_drawn(tmp_path: Path) -> None:
    out = tmp_path / "curves.svg"
    both = (
        "--compare",
        "Rex, OneCycle(warmup=0.2)",
        "-c",
        "Piecewise(pieces=((0.5, Scaled(by=0.5, of=Rex)), (0.5, Linear)))",
    )
    result = run(GPT, *both, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"written to {out}"
    names = [s["schedule"].partition("(")[0] for s in said(GPT, *both)["schedules"]]
    assert names == ["Cosine", "Rex", "OneCycle", "Piecewise"]
    warm = [s["warmup_end"]["progress"] for s in said(GPT, *both)["schedules"]]
    assert warm == pytest.approx([0.1, 0.05, 0.2, 0.025])
    page = xml.fromstring(out.read_text())
    drawn = page.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(drawn) == 4
    assert drawn[0].get("points", "").endswith("730.0,310.0"), "the last rate is 5 % of the height"
    texts = [t.text for t in page.iter("{http://www.w3.org/2000/svg}text")]
    assert "OneCycle(warmup=0.2, final=4e-06, start=0.04, shape='cosine', three_phase=False)" in texts


def test_a_run_has_its_own_budget(tmp_path: Path) -> None:
    job = shoal.Job(
        name="plain", task=Plain(), data=shoal.Data(train="x"), budget=shoal.Budget(epochs=2),
        schedule=shoal.WarmRestarts(),
    )  # fmt: skip
    folder = RunFolder(tmp_path / "plain-1")
    folder.path.mkdir()
    folder.update(run_id="plain-1", name="plain", total_steps=70)
    save_job(folder, job, None)
    found = said("plain-1", "--runs", tmp_path)
    assert found["total_steps"] == 70
    assert found["schedules"][0]["schedule"].startswith("WarmRestarts(")
    assert said("plain-1", "--runs", tmp_path, "--set", "budget.epochs=3")["epochs"] == 3


def test_what_is_wrong_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 'did you mean "Rex"?' in refused(GPT, "--compare", "rex", capsys=capsys)
    assert "curve.png must end in .svg" in refused(GPT, "--out", tmp_path / "curve.png", capsys=capsys)
    assert "cannot be written" in refused(GPT, "--out", tmp_path / "none" / "c.svg", capsys=capsys)
    assert "there is no recipe" in refused(tmp_path / "none.py", capsys=capsys)
    assert "schedule.power" in refused(GPT, "--set", "schedule.power=2", capsys=capsys)


def test_blocks_fill_what_they_show() -> None:
    axes = Axes(x=8, x_unit="steps", y=2.0)
    assert list(blocks([0.0, 0.01, 0.25, 1.0, 2.0], axes, rows=2)) == [
        "2 ┤    █",
        "1 ┤ ▁▂██",
        "0 └─────",
        "   0 4 8 steps",
    ]


def test_names_in_pictures_are_text() -> None:
    page = xml.fromstring(svg([Line(name="a<b & c", values=[0, 1])], Axes(x=1, x_unit="steps", y=1), title="<t>"))
    assert "a<b & c" in [t.text for t in page.iter("{http://www.w3.org/2000/svg}text")]


def test_long_names_are_broken_into_rows() -> None:
    name = " ".join(["word"] * 60)
    page = xml.fromstring(svg([Line(name=name, values=[0, 1])], Axes(x=1, x_unit="steps", y=1), title=""))
    rows = [t for t in page.iter("{http://www.w3.org/2000/svg}text") if "word" in (t.text or "")]
    assert " ".join(t.text or "" for t in rows) == name
    assert len({t.get("y") for t in rows}) == len(rows) > 3
    assert max(float(t.get("y", 0)) for t in rows) < float(page.get("height", 0))
