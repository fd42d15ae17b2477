"""`shoal lr-find`: what is asked, refused, drawn and written."""

from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from pathlib import Path

import pytest

import shoal
from shoal.cli import lr_find, main
from shoal.cli.lr_find_page import page, picture
from shoal.errors import ConfigError
from shoal.launch.lr_find import Range, RateFound
from shoal.optim.range_test import analyse
from shoal.optim.schedules import learning_rate
from shoal.run_folder import RunFolder
from tests.support.plain_task import Plain

pytestmark = pytest.mark.unit

GPT = Path(__file__).parents[3] / "jobs" / "gpt.py"


def example(tmp_path: Path) -> RateFound:
    """40 steps; the loss is lowest around 0.02."""
    asked = Range(low=1e-4, high=1.0, steps=40)
    found = [asked.rate(step) for step in range(1, 41)]
    losses = [2.0 - 1.5 * min(i, 25) / 25 + (2.0 ** (i - 28) if i > 28 else 0) for i in range(40)]
    job = shoal.Job(name="a<b", task=Plain(), data=shoal.Data(train="x"), budget=shoal.Budget(epochs=1))
    return RateFound(job=job, range=asked, finding=analyse(found, losses, 40), folder=RunFolder(tmp_path))


def test_the_schedule_begins_and_ends_with_the_rates_that_were_asked_for() -> None:
    asked = Range(low=1e-5, high=0.3, steps=50)
    for step in (1, 2, 25, 50):
        assert learning_rate(0.3, asked.schedule, step / 50) == pytest.approx(asked.rate(step), rel=1e-9)
    assert (asked.rate(1), asked.rate(50)) == (1e-5, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--from", "1", "--to", "0.1"), "--from 1 and --to 0.1 are no range"),
        (("--from", "0"), "need 0 < from < to"),
        (("--to", "nan"), "are no range"),
        (("--steps", "5"), "--steps 5 is too few to see a slope; use at least 20"),
        (("--set", "budget.steps=30"), "--steps 100 is more than the 30 steps of the job's whole budget"),
        (("--set", "optimizer.nam=sgd"), "did you mean optimizer.name"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["lr-find", str(GPT), *arguments, "--runs", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_no_recipe_no_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert main.run(["lr-find", str(tmp_path / "empty.py"), "--json"]) == 2
    said = capsys.readouterr()
    assert "defines no `job`" in said.err
    assert json.loads(said.out)["type"] == "error"


def test_endless_rates_are_refused() -> None:
    with pytest.raises(ConfigError, match="are no range"):
        Range(high=float("inf"))


def test_the_command_to_go_on_with_keeps_what_was_set() -> None:
    sets = ("optimizer.lr=1", "schedule=Rex(warmup=0.1)")
    said = lr_find._go_on("my jobs/r.py", sets, 0.0023)
    assert said == "shoal train 'my jobs/r.py' --set 'schedule=Rex(warmup=0.1)' --set optimizer.lr=0.0023"
    assert lr_find._go_on("r.py", (), None) is None


def test_the_picture_marks_the_rates(tmp_path: Path) -> None:
    done = example(tmp_path)
    drawn = xml.fromstring(picture(done))
    space = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{space}polyline")) == 2
    marks = [line for line in drawn.iter(f"{space}line") if line.get("class") == "mark"]
    texts = [t.text or "" for t in drawn.iter(f"{space}text")]
    assert len(marks) == 2
    assert any(t.startswith("fastest fall") for t in texts)
    assert "0.0001" in texts, "the axis begins with the first rate"
    whole = page(done, "shoal train r.py --set 'a=<b>'")
    assert "a&lt;b: adamw" in whole
    assert "--set &#x27;a=&lt;b&gt;&#x27;" in whole
    assert "http://" not in whole.replace("http://www.w3.org/2000/svg", ""), "nothing is loaded from elsewhere"


def test_a_screen_of_text_and_the_files(tmp_path: Path) -> None:
    done = example(tmp_path)
    place = lr_find._write(done, done.to_json(), None)
    lines = list(lr_find._lines(done, "shoal train r.py", place))
    assert lines[0] == "a<b: adamw, loss over rates from 0.0001 to 1, 40 steps"
    assert lines[-1] == "  go on with  shoal train r.py"
    assert any(line.startswith(f"  suggestion  {done.finding.suggestion:g}, a tenth") for line in lines)
    assert place.read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / lr_find.JSON).read_text())["suggestion"] == done.finding.suggestion


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_test_that_diverged_at_once_is_told_of(tmp_path: Path, steps: int) -> None:
    asked = Range(low=1.0, high=10.0, steps=40)
    found = analyse([asked.rate(s + 1) for s in range(steps)], [2.0] * steps, 40, next_rate=asked.rate(steps + 1))
    job = example(tmp_path).job
    done = RateFound(job=job, range=asked, finding=found, folder=RunFolder(tmp_path))
    lines = list(lr_find._lines(done, None, lr_find._write(done, done.to_json(), None)))
    assert any("too few to tell" in line for line in lines)
    assert not any("go on with" in line for line in lines)
