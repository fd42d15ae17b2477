from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest

from shoal.cli.display import JsonDisplay, PlainDisplay, make_display
from shoal.cli.live import LiveDisplay
from shoal.coordinator.status import Outcome, RunStatus

pytestmark = pytest.mark.unit

INFO = {
    "run_id": "gpt-1",
    "folder": "runs/gpt-1",
    "workers": "1..2",
    "total_steps": 100,
    "data": "builtin:stdlib",
    "samples": 81_000,
    "validation_samples": 4532,
    "record": "runs/gpt-1/report.html",
    "engine": "zero-2",
    "cluster": "local",
}
OUTCOME = Outcome(
    status="finished",
    run_id="gpt-1",
    folder="runs/gpt-1",
    step=100,
    metrics={"train/loss": 1.5, "val/loss": 1.6},
    checkpoint="runs/gpt-1/checkpoints/step-00000100",
    model="runs/gpt-1/model",
    record="runs/gpt-1/report.html",
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at(step: int, **more: Any) -> RunStatus:
    values = {"phase": "training", "total_steps": 100, "loss": 2.0, "workers": 2, **more}
    return RunStatus(step=step, **values)


def test_plain_lines_come_every_two_seconds_or_tenth_of_the_budget() -> None:
    stream, clock = io.StringIO(), Clock()
    display = PlainDisplay(stream, clock=clock)
    for step in range(1, 35):
        clock.now = step * 0.25
        display.status(at(step))
    shown = [int(line.split("step ")[1].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert shown == [1, 9, 10, 18, 20, 28, 30]


def test_plain_says_what_a_run_waits_for_once() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream, clock=Clock())
    for _ in range(5):
        display.status(RunStatus(phase="waiting", message="1 of 2 workers; no node has 2 CPUs free"))
    assert stream.getvalue() == "waiting: 1 of 2 workers; no node has 2 CPUs free\n"


def test_plain_says_what_a_run_waits_for_in_the_middle_too() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream, clock=Clock())
    display.status(at(40))
    for _ in range(3):
        display.status(at(40, phase="waiting", workers=0, message="1 of at least 2 workers is there"))
    display.event("hang", "w1 hung and was cut out: 1 worker from step 41 · detect 10.00s")
    assert stream.getvalue().splitlines()[1:] == [
        "waiting: 1 of at least 2 workers is there · step 40/100",
        "hang: w1 hung and was cut out: 1 worker from step 41 · detect 10.00s",
    ]


def test_plain_tells_the_whole_story() -> None:
    stream = io.StringIO()
    display = make_display(stream=stream)
    assert isinstance(display, PlainDisplay)
    with display:
        display.started(INFO)
        display.status(
            at(3, samples_per_s=870.4, tokens_per_s=111_000, wanted=4, eta_s=125, evaluation={"val/loss": 1.95})
        )
        display.event("checkpoint", "step 3: runs/gpt-1/checkpoints/step-00000003")
        display.finished(OUTCOME)
    said = stream.getvalue()
    assert "builtin:stdlib (81k samples, 4.53k held out)" in said
    assert "100 steps, 1..2 workers, zero-2, local cluster" in said
    assert "step 3/100 · loss 2 · 870 samples/s · 111k tokens/s · 2/4 workers · val/loss 1.95 · 2:05 left" in said
    assert "checkpoint: step 3" in said
    assert "finished after 100 steps" in said
    assert "val/loss 1.6 · train/loss 1.5" in said


def test_quiet_leaves_warnings_and_the_result() -> None:
    stream = io.StringIO()
    display = make_display(stream=stream, quiet=True)
    display.started(INFO)
    display.event("checkpoint", "step 3")
    display.status(at(3))
    display.event("warning", "MLflow is down; points are kept")
    display.finished(OUTCOME)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "warning: MLflow is down; points are kept"
    assert lines[1].startswith("finished after 100 steps")


def test_a_failed_run_says_why_and_how_to_go_on() -> None:
    failed = Outcome(
        status="failed", run_id="gpt-1", folder="runs/gpt-1", step=40, checkpoint="c", error="loss is nan", exit_code=1
    )
    for stream, display in ((s := io.StringIO(), PlainDisplay(s)), (t := Terminal(), LiveDisplay(t, width=80))):
        display.finished(failed)
        assert "failed after 40 steps" in stream.getvalue()
        assert "loss is nan" in stream.getvalue()
        assert "shoal resume gpt-1" in stream.getvalue()
    assert s is not t


def test_json_is_one_valid_object_per_line_and_says_each_status_once() -> None:
    stream = io.StringIO()
    with make_display(stream=stream, as_json=True) as display:
        assert isinstance(display, JsonDisplay)
        display.started(INFO)
        for step in (1, 1, 1, 2):
            display.status(at(step, loss=math.nan, evaluation={"val/loss": math.inf}))
        display.event("loss", 'worker "w1" died\nno more')
        display.finished(OUTCOME)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in stream.getvalue().splitlines()]
    assert [line["type"] for line in lines] == ["started", "status", "status", "event", "finished"]
    assert lines[1]["loss"] is None
    assert lines[1]["evaluation"] == {"val/loss": None}
    assert lines[4]["exit_code"] == 0
    assert lines[4]["metrics"]["val/loss"] == 1.6


@pytest.mark.parametrize("width", [40, 80, 200])
def test_live_stays_two_lines_and_leaves_the_terminal_as_it_was(width: int) -> None:
    stream = Terminal()
    with LiveDisplay(stream, width=width) as display:
        display.event("info", "connecting to Ray")
        display.started(INFO)
        display.status(RunStatus(phase="starting", message="a worker is importing"))
        display.status(at(50, eta_s=12, samples_per_s=1234.5, tokens_per_s=1e6, evaluation={"val/loss": 1.95}))
        frame = stream.getvalue().rpartition("\x1b[2K")[2]
        assert len(frame.splitlines()) == 2
        assert "50/100" in frame
        display.event("evaluation", "step 50: [bold]val/loss[/bold] 1.95")
    said = stream.getvalue()
    assert "step 50: [bold]val/loss[/bold] 1.95" in said.replace("\n", " ") or width == 40
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1, "the cursor must come back"


def test_a_terminal_gets_the_live_display() -> None:
    assert isinstance(make_display(stream=Terminal()), LiveDisplay)
    assert isinstance(make_display(stream=Terminal(), quiet=True), PlainDisplay)
    assert isinstance(make_display(stream=Terminal(), as_json=True), JsonDisplay)
