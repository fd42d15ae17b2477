from __future__ import annotations

import io
import json
from typing import Any

import click
import pytest

from shoal.cli.progress import OnlyProgress, ProgressLine
from shoal.cli.ranges import OPEN, Size, StepRange
from shoal.cli.standing import COLUMNS, as_json, headline, rows, table
from shoal.coordinator.status import MemberStatus, Outcome, RunStatus
from shoal.tracking.runs import RunSummary
from tests.support.runs import Listener

pytestmark = pytest.mark.unit

RUN = RunSummary(
    run_id="gpt-1", name="gpt", status="running", step=12, total_steps=100, loss=1.5, best_val_loss=1.4, workers=2,
    started=1.0, duration_s=75.0, unsent=False,
)  # fmt: skip
MEMBERS = (
    MemberStatus(member="w0", state="member", rank=0, node="aaaabbbbcccc", address="10.0.0.4", pid=11, device="cpu",
                 virtual_shards=4, step=13, doing="compute", step_s=0.2123, compute_s=0.0501, since=900.0),
    MemberStatus(member="w4", state="member", rank=1, node="ddddeeeeffff", address="10.0.0.4", pid=12, device="cpu",
                 virtual_shards=4, step=13, doing="data", step_s=0.61, compute_s=0.1502, straggler=3.0),
    MemberStatus(member="w5", state="starting", since=940.0),
)  # fmt: skip


def cells(row: list[str]) -> dict[str, str]:
    return dict(zip(COLUMNS, row, strict=True))


def test_a_run_that_goes_on() -> None:
    status = RunStatus(
        phase="waiting", step=12, total_steps=100, loss=1.5, workers=1, wanted=2, message="1 of 2 workers"
    )
    assert headline(RUN, status) == [
        "gpt-1: waiting · step 12/100 · loss 1.5 · 1/2 workers",
        "waits: 1 of 2 workers",
    ]


def test_a_run_that_is_over() -> None:
    assert headline(RUN, None) == ["gpt-1: running · step 12/100 · loss 1.5 · best val/loss 1.4 · took 1:15"]


def test_members_say_where_they_run_what_they_do_and_who_is_slow() -> None:
    first, slow, new = map(cells, rows(MEMBERS, now=1000.0))
    assert (first["state"], first["rank"], first["where"]) == ("member", "0", "10.0.0.4 (aaaabb)")
    assert (first["step"], first["doing"], first["step time"], first["per shard"]) == (
        "13",
        "compute",
        "0.212s",
        "0.0501s",
    )
    assert (first[""], slow[""]) == ("", "3.0x slower")
    assert slow["where"] == "10.0.0.4 (ddddee)", "two nodes of one machine are told apart"
    assert (new["state"], new["rank"], new["where"], new["shards"]) == ("starting 1m", "", "", "")


def test_columns_that_say_nothing_are_left_out() -> None:
    names, found = table(MEMBERS[2:], now=1000.0)
    assert names == ["worker", "state"]
    assert found == [["w5", "starting 1m"]]
    assert table((), now=0.0) == (["worker", "state"], [])


def test_narrow_terminals_get_fewer_columns() -> None:
    names, found = table(MEMBERS, now=1000.0, width=80)
    assert names == ["worker", "state", "where", "shards", "step", "step time", ""]
    assert sum(max(map(len, column)) + 2 for column in zip(names, *found, strict=True)) - 2 <= 80
    assert len(table(MEMBERS, now=1000.0, width=200)[0]) == len(COLUMNS)
    assert table(MEMBERS, now=1000.0, width=10)[0] == ["worker", "state", "where", "step", "step time", ""]


def test_json_has_every_field() -> None:
    said = json.loads(
        json.dumps(as_json(RUN, RunStatus(phase="training", step=13, evaluation={"val/loss": 1.4}), MEMBERS))
    )
    assert (said["run_id"], said["status"], said["phase"], said["step"]) == ("gpt-1", "running", "training", 13)
    assert [m["straggler"] for m in said["members"]] == [None, 3.0, None]
    assert said["evaluation"] == {"val/loss": 1.4}


@pytest.mark.parametrize(
    ("typed", "meant"), [("3:9", (3, 9)), ("3:", (3, OPEN)), (":9", (1, 9)), ("7", (7, 7)), (f"1:{OPEN}", (1, OPEN))]
)
def test_ranges_of_steps(typed: str, meant: tuple[int, int]) -> None:
    assert StepRange().convert(typed, None, None) == meant


@pytest.mark.parametrize("typed", ["", ":", "9:3", "0:4", "a:b", "1-5", "-3"])
def test_ranges_that_hold_no_step(typed: str) -> None:
    with pytest.raises(click.BadParameter, match=r"range of steps|holds no step"):
        StepRange().convert(typed, None, None)


@pytest.mark.parametrize(("typed", "meant"), [("4", (4, 4)), ("2:6", (2, 6)), ("1:1", (1, 1))])
def test_sizes(typed: str, meant: tuple[int, int]) -> None:
    assert Size().convert(typed, None, None) == meant


def test_the_progress_line_is_written_over_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    line = ProgressLine(stream)
    line.say("half of it", last=True)
    line.say("all", last=True)
    line.clear()
    assert stream.getvalue() == "\rhalf of it\rall       " + "\r   \r"
    plain = io.StringIO()
    ProgressLine(plain).say("one")
    assert plain.getvalue() == "", "elsewhere the first word comes after some seconds"


def test_only_progress_keeps_introduction_and_outcome_to_itself() -> None:
    class Everything(Listener):
        def started(self, info: Any) -> None:
            raise AssertionError("not introduced")

        def finished(self, outcome: Outcome) -> None:
            raise AssertionError("no outcome")

    shown = Everything()
    display = OnlyProgress(shown)
    display.started({})
    display.event("loss", "w1")
    display.event("checkpoint", "step 3")
    display.status(RunStatus(phase="training", step=2))
    display.finished(Outcome(status="stopped", run_id="", folder="", step=0))
    assert shown.events == [("loss", "w1")]
    assert shown.last is not None
    assert shown.last.step == 2
