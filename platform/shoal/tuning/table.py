"""How a sweep goes, as lines of a terminal and as events: pure, from its state alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shoal.cli import text
from shoal.tuning.trials import SweepState, TrialRow, Value


class Cell(NamedTuple):
    """Text, and how it is meant: a status of a trial, `label`, `best`, `bar`, `soft`, or nothing."""

    text: str
    style: str = ""


Line = list[Cell]

WORDS = {
    "running": "running",
    "waiting": "waiting",
    "interrupted": "interrupted",
    "finished": "finished",
    "stopped-early": "stopped early",
    "failed": "failed",
}
"""Of the statuses, in the order in which they are counted."""
COLUMNS = ("trial", "progress", "step", "last", "best", "left", "with")
RIGHT = frozenset({"trial", "step", "last", "best", "left"})
SPARED = ("last", "step", "left")
"""Columns that are left out, in this order, where the fields of the job would have too little room."""
GAP = 2
ROWS = 10
_BAR, _SHORTEST_WITH = 13, 18


@dataclass(frozen=True, slots=True)
class Eta:
    """How long the sweep still takes, and what that rests on."""

    seconds: float
    basis: str


def lines(state: SweepState, now: float, width: int = 100, rows: int = ROWS) -> list[Line]:
    """The whole table: no line is longer than `width` characters, and there are at most `rows` trials in it.

    Running trials come first, then the best of the others. `now` in Unix seconds.
    """
    left = eta(state, now) if state.ended is None else None
    spent = [f"{text.duration(state.elapsed(now))} so far", *costs(state)]
    head = [
        *wrapped(_counts(state), width),
        *wrapped(_best(state), width, " "),
        *wrapped([Cell("cost", "label"), *map(Cell, spent)], width, "  "),
    ]
    if left is not None:
        told = [Cell("left", "label"), Cell(f"about {text.duration(left.seconds)}"), Cell(f"({left.basis})", "soft")]
        head += wrapped(told, width, "  ")
    return [*head, *(cut(line, width) for line in _table(state, now, width, rows))]


def wrapped(parts: Line, width: int, between: str = " · ") -> list[Line]:
    """`parts` in as many lines as they need, none of them divided unless it is longer than a line."""
    out: list[Line] = []
    for part in parts:
        room = width - sum(len(cell.text) for cell in out[-1]) if out else 0
        if out and len(between) + len(part.text) <= room:
            out[-1] += [Cell(between, "soft"), part]
        else:
            out.append([Cell("  "), part] if out else [part])
    return [cut(line, width) for line in out]


def cut(line: Line, width: int) -> Line:
    """`line` with at most `width` characters, an ellipsis where something is missing."""
    out: Line = []
    room = width
    for cell in line:
        if len(cell.text) > room:
            return [*out, Cell(cell.text[: room - 1] + "…", cell.style)] if room > 0 else out
        out.append(cell)
        room -= len(cell.text)
    return out


def plain(line: Line) -> str:
    return "".join(cell.text for cell in line).rstrip()


def counts_in_words(state: SweepState) -> str:
    """`12 of 24 trials over · 2 running · 10 waiting · 4 finished · 7 stopped early · 1 failed`."""
    return " · ".join(cell.text for cell in _counts(state))


def _counts(state: SweepState) -> Line:
    counts = state.counts
    over = sum(counts[status] for status in ("finished", "stopped-early", "failed"))
    total = Cell(f"{over} of {sum(counts.values())} trials over", "label")
    return [total, *(Cell(f"{counts[s]} {word}", s) for s, word in WORDS.items() if counts[s])]


def _best(state: SweepState) -> Line:
    row = state.best
    if row is None or row.best is None:
        return []
    value = Cell(f"{state.facts.metric} {row.best:.4g}", "best")
    words = settings(row).split(" ")
    return [Cell("best ", "label"), value, Cell(f"in trial {row.number}:"), *map(Cell, words)]


def costs(state: SweepState) -> list[str]:
    """`3:49 of workers`, `3.55 kJ`, `$0.06`: what is known of it."""
    workers, joules, dollars = (state.spent(what) for what in ("worker_seconds", "joules", "dollars"))
    said = [f"{text.duration(workers)} of workers" if workers else ""]
    said += [energy(joules), money(dollars)]
    return [part for part in said if part]


def energy(joules: float | None) -> str:
    """`2.5 kJ`; nothing if it is not known."""
    if joules is None:
        return ""
    digits = text.amount(joules)
    return f"{digits} J" if digits[-1].isdigit() else f"{digits[:-1]} {digits[-1]}J"


def money(dollars: float | None) -> str:
    """`$12.30`, `$0.0042`; nothing if it is not known."""
    if dollars is None:
        return ""
    return f"${dollars:.2f}" if dollars >= 0.1 or dollars == 0 else f"${dollars:.2g}"


def settings(row: TrialRow) -> str:
    """What was chosen for a trial: `lr=0.0026 batch.size=64 schedule=Rex`.

    The last word of a field says enough, unless two fields have the same one, or the word says little by itself.
    """
    last = [name.rpartition(".")[2] for name in row.fields]
    short = {
        n: w if last.count(w) == 1 and w not in ("size", "name") else n for n, w in zip(row.fields, last, strict=True)
    }
    return " ".join(f"{short[name]}={value_text(value)}" for name, value in row.fields.items())


def value_text(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# The trials --------------------------------------------------------------------------------------------------------


def _table(state: SweepState, now: float, width: int, rows: int) -> list[Line]:
    shown, left_out = _shown(state, rows)
    if not shown:
        return []
    cells = [_row(row, now) for row in shown]
    keep = list(COLUMNS)
    widths = {c: max(len(c), *(len(row[c].text) for row in cells)) for c in COLUMNS if c != "with"}
    spared = list(SPARED)
    while spared and sum(widths[c] + GAP for c in keep if c != "with") + _SHORTEST_WITH > width:
        keep.remove(spared.pop(0))
    out = [[Cell(_padded(c, c, widths), "soft") for c in keep]]
    out += [[Cell(_padded(row[c].text, c, widths), row[c].style) for c in keep] for row in cells]
    if left_out:
        out.append([Cell(f"and {left_out} more", "soft")])
    return out


def _padded(said: str, column: str, widths: dict[str, int]) -> str:
    if column == "with":
        return said
    return (said.rjust if column in RIGHT else said.ljust)(widths[column]) + " " * GAP


def _shown(state: SweepState, rows: int) -> tuple[list[TrialRow], int]:
    """The trials to show, and how many are not: running ones, the best of the others, then the newest."""
    running = [r for r in state.rows if r.status == "running"]
    others = [r for r in state.ranked if r.status != "running"]
    known = {r.number for r in (*running, *others)}
    others += [r for r in reversed(state.rows) if r.number not in known]
    # Some room for the best, however many run.
    most = max(1, rows - min(len(others), rows // 3))
    shown = running[:most]
    shown += others[: rows - len(shown)]
    return shown, len(state.rows) - len(shown)


def _row(row: TrialRow, now: float) -> dict[str, Cell]:
    step, total, left = at_step(row), row.total_steps, seconds_left(row, now)
    share = step / total if total else 0.0
    going = Cell(bar(share, _BAR), "bar") if step else Cell("starting", "soft")
    status = going if row.status == "running" else Cell(WORDS[row.status], row.status)
    told = row.reason.strip().splitlines()[:1] if row.status == "failed" else []
    return {
        "trial": Cell(str(row.number)),
        "progress": status,
        "step": Cell(f"{step}/{total}" if total else str(step) if step else ""),
        "last": Cell(_number(row.metric)),
        "best": Cell(_number(row.best)),
        "left": Cell(text.duration(left) if left is not None else "", "soft"),
        "with": Cell(told[0], "failed") if told else Cell(settings(row)),
    }


def bar(share: float, width: int) -> str:
    """`━━━━╸───`: `share` of `width` characters."""
    halves = round(min(max(share, 0.0), 1.0) * width * 2)
    full, half = divmod(halves, 2)
    return "━" * full + "╸" * half + "─" * (width - full - half)


def at_step(row: TrialRow) -> int:
    """Where the trial is: as somebody saw, or as its last evaluation says."""
    return max(row.now or 0, row.step)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


# How long it takes -------------------------------------------------------------------------------------------------


def seconds_left(row: TrialRow, now: float) -> float | None:
    """Seconds to the end of a running trial's budget at its pace so far; None: not known."""
    step = at_step(row)
    if row.status != "running" or not row.total_steps or not step or row.started is None:
        return None
    # What a resumed trial did before counts as steps of the same pace; `started` is that of its first part.
    spent = row.seconds * step / row.step if row.step else now - row.started
    return max(0.0, spent * (row.total_steps - step) / step)


def eta(state: SweepState, now: float) -> Eta | None:
    """When all trials are over, from how long those took that are; before that, from the pace of those that run.

    None: nothing is known yet, or nothing is left to do.
    """
    counts, slots = state.counts, max(1, state.facts.at_once)
    waiting, running = counts["waiting"] + counts["interrupted"], [r for r in state.rows if r.status == "running"]
    left = [seconds for r in running if (seconds := seconds_left(r, now)) is not None]
    took = [_took(r, state) for r in state.rows if r.status in ("finished", "stopped-early")]
    if took:
        mean = math.fsum(took) / len(took)
        each, basis = mean, f"{text.duration(mean)} a trial so far"
    elif left:
        known = [r for r in running if seconds_left(r, now) is not None]
        each = max(seconds + (now - (r.started or now)) for r, seconds in zip(known, left, strict=True))
        basis = "from the pace of the running trials"
    else:
        return None
    # One that has not told anything yet is about to begin; no trial takes longer than stopping it early lets it.
    going = [min(seconds, each) if took else seconds for seconds in left] + [each] * (len(running) - len(left))
    if not waiting and not going:
        return None
    seconds = max([(math.fsum(going) + waiting * each) / slots, *going])
    basis += f", {slots} at once" if waiting else ""
    limit = state.facts.budget.get("seconds")
    if limit is not None and (rest := max(0.0, limit - state.elapsed(now))) < seconds:
        return Eta(rest, "the sweep's budget")
    return Eta(seconds, basis)


def _took(row: TrialRow, state: SweepState) -> float:
    """Wall-clock seconds of a trial; of one from before a resume, only those of its steps are known."""
    whole = row.ended is not None and row.started is not None and row.started >= state.opened
    return (row.ended or 0.0) - (row.started or 0.0) if whole else row.seconds


# Events ------------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """Something happened: started, finished, stopped-early, failed, interrupted, or a new best."""

    kind: str
    text: str
    more: str = ""
    """How the sweep stands then, for where no table shows it."""


class News:
    """Tells what has happened since it was asked last. A sweep's state is one value that changes, hence the memory."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[bool, int]] = {}
        """Of each trial that was told of: whether it was over, and how many runs it had."""
        self._best: float | None = None

    def of(self, state: SweepState, now: float) -> Iterator[Event]:
        """What is new in `state`, one line each."""
        for row in state.rows:
            was, runs = self._known.get(row.number, (False, 0))
            self._known[row.number] = (row.over, len(row.runs))
            if not runs or (was and not row.over) or len(row.runs) > runs:
                yield Event("started", _started_in_words(row, again=runs > 0 or row.step > 0))
            if row.over and not was:
                yield Event(row.status, ended_in_words(row, state.facts.metric))
        # A trial that still runs gets better with almost every evaluation; that is no event.
        best = next((row for row in state.ranked if row.over), None)
        if best is not None and best.best != self._best:
            self._best, left = best.best, eta(state, now)
            parts = [
                f"{state.facts.metric} {best.best:.4g} in trial {best.number}",
                counts_in_words(state),
                *costs(state),
            ]
            parts += [f"about {text.duration(left.seconds)} left"] if left else []
            yield Event("best", " · ".join(parts))


def _started_in_words(row: TrialRow, *, again: bool) -> str:
    source = f" from trial {row.parent}" if row.parent is not None else ""
    return f"trial {row.number}{' goes on' if again else ''}{source}: {settings(row)}"


def ended_in_words(row: TrialRow, metric: str) -> str:
    """`trial 3: at 1200 samples, 2.9 is not among the better half · best val/loss 2.81 · 40/300 steps`."""
    reason = row.reason.strip().splitlines()
    said = f"trial {row.number}" + (f": {reason[0]}" if reason else "")
    parts = [f"best {metric} {row.best:.4g}"] if row.best is not None else []
    parts += [f"{row.step}/{row.total_steps} steps"] if row.total_steps else []
    return " · ".join([said, *parts])


def closing(state: SweepState, further: Sequence[tuple[str, str]] = ()) -> list[str]:
    """The lines that a sweep leaves on the screen; `further` (name, value) come last."""
    took = text.duration(state.elapsed(state.latest))
    lines = [f"sweep {state.name} {state.status} in {took}: {counts_in_words(state)}"]
    if state.status != "finished" and state.reason:
        lines.append(f"  {'reason':<10}  {state.reason}")
    best = state.best
    if best is not None and best.best is not None:
        lines.append(f"  {'best':<10}  {state.facts.metric} {best.best:.5g} in trial {best.number}: {settings(best)}")
    if (told := state.yardstick) is not None and told.best is not None and told is not best:
        lines.append(
            f"  {'against':<10}  {told.best:.5g} in trial {told.number}, with which it began: {settings(told)}"
        )
    if spent := costs(state):
        lines.append(f"  {'cost':<10}  {' · '.join(spent)}")
    failed = [row for row in state.rows if row.status == "failed"]
    for row in failed[:3]:
        lines.append(f"  {'failed':<10}  {ended_in_words(row, state.facts.metric)}")
    if len(failed) > 3:
        lines.append(f"  {'':<10}  and {len(failed) - 3} more, see the report")
    return lines + [f"  {name:<10}  {value}" for name, value in further]
