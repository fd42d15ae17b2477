"""How a sweep goes, in a terminal: readable at any width, at 4 trials and at 400."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.cli.sweep_table import SweepTable
from shoal.tracking.ledger import read
from shoal.tuning import table
from shoal.tuning.ledger import FILE
from shoal.tuning.report import write_report
from shoal.tuning.trials import SweepState, heard
from tests.support.sweeps import entries, state_of, write_sweep

pytestmark = pytest.mark.unit

ROOT = Path("runs")


def at(count: int, share: float) -> tuple[SweepState, float]:
    """A sweep of `count` trials as it stands after `share` of its entries, and when that was."""
    told = list(entries(count, 1000.0, ROOT))
    told = told[: max(2, round(len(told) * share))]
    return state_of(told), told[-1]["time"]


def shown(state: SweepState, now: float, width: int, rows: int = table.ROWS) -> list[str]:
    return [table.plain(line) for line in table.lines(state, now, width, rows)]


@pytest.mark.parametrize("width", [60, 100, 160])
@pytest.mark.parametrize("count", [4, 40, 400])
def test_everything_that_matters_fits(count: int, width: int) -> None:
    state, now = at(count, 0.6)
    lines = shown(state, now, width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= table.ROWS + 9
    whole = "\n".join(lines)
    counts, best = state.counts, state.best
    over = counts["finished"] + counts["stopped-early"] + counts["failed"]
    assert f"{over} of {count} trials over" in whole
    assert f"{counts['waiting']} waiting" in whole
    assert best is not None
    assert f"val/loss {best.best:.4g} in trial {best.number}:" in whole
    assert "of workers" in whole
    assert "left  about" in whole
    head = next(i for i, line in enumerate(lines) if line.startswith("trial"))
    rows = [line.split()[0] for line in lines[head + 1 : head + 1 + min(count, table.ROWS)] if line[0] == " "]
    running = [str(r.number) for r in state.rows if r.status == "running"]
    assert rows[: len(running)] == running, "running trials come first"
    assert rows[len(running)] == str(next(r for r in [best, *state.rows] if r.status != "running").number)
    if count == 400:
        assert lines[-1] == f"and {len(state.rows) - table.ROWS} more"


@given(count=st.integers(1, 30), share=st.floats(0, 1), width=st.integers(20, 200), rows=st.integers(2, 40))
def test_no_line_is_ever_too_long(count: int, share: float, width: int, rows: int) -> None:
    state, now = at(count, share)
    lines = shown(state, now, width, rows)
    assert all(len(line) <= width for line in lines)
    numbers = {r.number for r in state.rows}
    head = next((i for i, line in enumerate(lines) if line.startswith("trial")), len(lines))
    listed = [int(w) for line in lines[head + 1 :] if (w := line.split()[0]).isdigit() and line[0] == " "]
    assert len(listed) == len(set(listed)) <= min(rows, len(numbers))


def test_a_running_trial_shows_where_it_is() -> None:
    state, now = at(4, 0.3)
    row = next(r for r in state.rows if r.status == "running" and r.step)
    assert row.total_steps is not None
    seen = replace(row, now=row.step + 7)
    assert table.at_step(seen) == row.step + 7
    assert table.bar(0.5, 10) == "━━━━━─────"
    assert table.bar(0.05, 10) == "╸─────────"
    assert len({len(table.bar(i / 100, 13)) for i in range(-10, 120)}) == 1
    left = table.seconds_left(seen, now)
    assert left == pytest.approx(row.seconds / row.step * (row.total_steps - row.step - 7))
    state.rows[row.number] = seen
    assert any(f"{row.step + 7}/300" in line for line in shown(state, now, 120))


def test_the_time_left_says_what_it_rests_on() -> None:
    state, now = at(24, 0.5)
    left = table.eta(state, now)
    assert left is not None
    over = [r for r in state.rows if r.status in ("finished", "stopped-early")]
    mean = sum((r.ended or 0) - (r.started or 0) for r in over) / len(over)
    waiting = state.counts["waiting"]
    assert waiting * mean / 2 <= left.seconds <= (waiting + 2) * mean / 2 + mean
    assert left.basis.endswith("a trial so far, 2 at once")
    state.facts = replace(state.facts, budget={"seconds": now - state.started + 1.5})
    assert table.eta(state, now) == table.Eta(pytest.approx(1.5), "the sweep's budget")
    first, when = at(24, 0.02)
    only = table.eta(first, when)
    assert only is not None
    assert only.basis.startswith("from the pace of the running trials")
    nothing = state_of(list(entries(24, 1000.0, ROOT))[:2])
    assert table.eta(nothing, 1003.0) is None
    ended, when = at(24, 1.0)
    assert table.eta(ended, when) is None


def test_each_thing_that_happens_is_told_once() -> None:
    told, news, said, state = list(entries(12, 1000.0, ROOT)), table.News(), [], None
    for entry in told[:-1]:
        state = heard(ROOT, state, entry)
        said += list(news.of(state, entry["time"]))
    assert state is not None
    kinds = [event.kind for event in said]
    assert kinds.count("started") == 12
    for status, count in state.counts.items():
        if status in ("finished", "stopped-early", "failed"):
            assert kinds.count(status) == count
    assert [event.text for event in said if event.kind == "failed"] == [
        "trial 2: RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB · 0/300 steps"
    ]
    bests = [float(event.text.split()[1]) for event in said if event.kind == "best"]
    assert bests == sorted(bests, reverse=True)
    assert bests
    again = {"kind": "continued", "time": 2e3, "trial": 1, "run": "r-2", "folder": "r", "fields": {"seed": 3}}
    assert list(news.of(heard(ROOT, state, {**again, "parent": 0}), 2e3)) == [
        ("started", "trial 1 goes on from trial 0: seed=3", "")
    ]


def test_fields_are_named_by_their_last_word_where_it_is_clear() -> None:
    state, _ = at(4, 1.0)
    row = replace(state.rows[0], fields={"optimizer.lr": 0.00257, "batch.size": 64, "a.x": True, "b.x": None})
    assert table.settings(row) == "lr=0.00257 batch.size=64 a.x=True b.x=None"


def test_into_a_pipe_goes_one_plain_line_for_each_event(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path, 6, began=1000.0)
    stream, told = io.StringIO(), read(folder / FILE)[0]
    write_report(folder, folder / FILE)
    with SweepTable(stream, clock=lambda: 1000.0) as display:
        for count in range(1, len(told) + 1):
            display.update(state_of(told[:count]))
        display.closed(state_of(told, folder))
    lines = stream.getvalue().splitlines()
    assert "\x1b" not in stream.getvalue()
    assert sum(line.startswith("started: ") for line in lines) == 6
    assert any(line.startswith("failed: trial 2: RuntimeError") for line in lines)
    assert any(line.startswith("best: val/loss ") and " of 6 trials over" in line for line in lines)
    assert any(line.startswith("sweep lr_schedule finished in ") for line in lines)
    assert lines[-3] == f"  best job    shoal train {folder / 'best.py'}"
    assert lines[-2] == f"  report      file://{folder / 'report.html'}"
    assert lines[-1] == f"  record      shoal ui --runs {tmp_path}"


def test_a_sweep_that_goes_on_does_not_tell_again_what_was() -> None:
    stream, told = io.StringIO(), list(entries(6, 1000.0, ROOT))
    state = state_of([*told, {**told[0], "time": 9000.0}])
    with SweepTable(stream, clock=lambda: 9000.0) as display:
        display.opened(state)
        display.update(state)
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("sweep: lr_schedule: 6 trials of gpt, 2 at once on 4 workers, TPE(seed=0)")
    assert line.endswith("; 6 are over already")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_table_is_drawn_over_and_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream, told = Terminal(), list(entries(6, 1000.0, ROOT))
    with SweepTable(stream, width=90, clock=lambda: 1000.0) as display:
        for count in range(1, len(told) + 1, 5):
            display.update(state_of(told[:count]))
        drawn = stream.getvalue()
        display.closed(state_of(told, tmp_path / ("x" * 200)))
    assert "trials over" in drawn
    assert "started" not in drawn.replace("starting", ""), "the table shows that"
    assert "RuntimeError" in drawn
    left = stream.getvalue().removeprefix(drawn).splitlines()
    assert any("sweep lr_schedule finished in " in line for line in left)
    assert any(f"shoal ui --runs {tmp_path.parent}" in line for line in left), "a command can be copied whole"


def test_quiet_tells_of_failures_and_of_the_end() -> None:
    stream, told = io.StringIO(), list(entries(6, 1000.0, ROOT))
    display = SweepTable(stream, quiet=True)
    for count in range(1, len(told) + 1):
        display.update(state_of(told[:count]))
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["failed"]
