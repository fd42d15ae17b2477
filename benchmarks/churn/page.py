"""The page of the churn benchmark, of all logs that lie in one folder."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.churn.arms import MEASURE, PEERS, PLAIN, SHOAL
from benchmarks.churn.figures import Figures, figures, speed
from benchmarks.churn.plots import draw_goodput, draw_progress
from benchmarks.churn.schedule import schedule
from benchmarks.common import RESULTS, spread, write_result

WORKERS = 4
TRACE = "p3"


@dataclass(frozen=True)
class Kept:
    """One run, as it lies in the folder."""

    arm: str
    trace: str
    log: list[dict[str, Any]]
    parameters: Path


@dataclass(frozen=True)
class Runs:
    """All of them."""

    kept: tuple[Kept, ...]

    def of(self, arm: str, trace: str) -> list[Kept]:
        return [k for k in self.kept if (k.arm, k.trace) == (arm, trace)]

    def speeds(self, measure: str) -> dict[int, float]:
        """Fault-free samples per second by number of workers; the median of the runs."""
        found = {}
        for n in range(1, WORKERS + 1):
            one = [s for k in self.of(measure, f"calm{n}") if (s := speed(k.log, _run(k)["batch"]))]
            if one:
                found[n] = statistics.median(one)
        return found

    def figures(self, arm: str, trace: str) -> list[Figures]:
        measure = self.speeds(MEASURE.get(arm, arm))
        known = measure if len(measure) == WORKERS else None
        length = schedule(trace, WORKERS).length_s
        return [figures(k.log, known, length) for k in self.of(arm, trace) if _ready(k)]


def read_runs(raw: Path) -> Runs:
    """All logs of a folder, in order of their names."""
    kept = []
    for path in sorted(raw.glob("*.jsonl")):
        arm, trace, _ = path.stem.split(".")
        log = [json.loads(line) for line in path.read_text().splitlines()]
        kept.append(Kept(arm, trace, log, path.with_suffix(".npy")))
    return Runs(tuple(kept))


def write_page(raw: Path) -> None:
    """Tables and plots under `benchmarks/results/`."""
    runs = read_runs(raw)
    arms = [a for a in (*SHOAL, *PEERS) if any(k.arm == a for k in runs.kept)]
    parts = [
        "# Training while workers come and go",
        "\n\n".join(sorted({_run(k)["machine"].rpartition(", load")[0] for k in runs.kept})),
        _about(runs),
        "## Goodput on 68 seconds of spot instances\n\n" + goodput_table(runs, arms),
        *_drawn(runs, arms),
        "## What one change costs\n\n" + changes_table(runs, arms),
        "## When nothing fails\n\n" + calm_table(runs, arms),
        "Fault-free samples/s by number of workers, from which goodput is computed:\n\n" + speeds_table(runs),
        "## Settings\n\n" + settings_list(runs, arms),
    ]
    write_result("churn", "\n\n".join(p for p in parts if p) + "\n")


def goodput_table(runs: Runs, arms: Sequence[str]) -> str:
    """What each arm made of the trace."""
    ray_train = [f.goodput for f in runs.figures("ray-train", TRACE) if f.goodput is not None]
    rows = []
    for arm in arms:
        found = [f for f in runs.figures(arm, TRACE) if f.goodput is not None]
        if not found:
            continue
        goodput = [f.goodput for f in found if f.goodput is not None]
        times = "-"
        if ray_train and arm != "ray-train" and statistics.median(ray_train):
            times = f"{statistics.median(goodput) / statistics.median(ray_train):.1f}"
        rows.append(
            [arm, spread(goodput), times, _counts([f.lost for f in found]), _counts([f.repeated for f in found]),
             _distances(runs, arm), _memory(found)]
        )  # fmt: skip
    return _table(
        [
            "arm",
            "goodput",
            "times Ray Train's",
            "samples lost",
            "samples repeated",
            "final parameters",
            "peak memory MB",
        ],
        rows,
    )


def changes_table(runs: Runs, arms: Sequence[str]) -> str:
    """Each change when the run had settled."""
    rows, parts = [], []
    for arm in arms:
        found = [r for f in runs.figures(arm, "one-by-one") for r in f.recoveries]
        if not runs.of(arm, "one-by-one"):
            continue
        kill = [r.next_step_s for r in found if r.what == "kill"]
        idle = {what: [r.idle_s for r in found if r.what == what] for what in ("join", "leave")}
        stuck = sum(e["kind"] == "stuck" for k in runs.of(arm, "one-by-one") for e in k.log)
        rows.append([arm, _spread(kill), _spread(idle["join"]), _spread(idle["leave"]), f"{stuck}" if stuck else ""])
        for what in ("kill", "join", "leave"):
            told = [r.parts for r in found if r.what == what and r.parts]
            if told:
                row = [_spread([p[name] for p in told]) for name in ("detect", "regroup", "state", "resume")]
                parts.append([arm, what, *row])
    head = ["arm", "kill to next step s", "join: idle s", "leave: idle s", "runs that did not settle"]
    return (
        _table(head, rows)
        + "\n\nWhere it goes, as far as a system tells it:\n\n"
        + _table(["arm", "change", "detect s", "regroup s", "state s", "resume s"], parts)
    )


def calm_table(runs: Runs, arms: Sequence[str]) -> str:
    """Speed of four workers against plain training in the same call."""
    rows = []
    for arm in arms:
        mine = [f.speed for f in runs.figures(arm, f"calm{WORKERS}") if f.speed]
        measure = MEASURE[arm]
        plain = [f.speed for f in runs.figures(measure, f"calm{WORKERS}") if f.speed]
        if not mine or not plain:
            continue
        pairs = [a / b for a, b in zip(mine, plain, strict=False)]
        name = "DDP" if measure == "ddp" else f"DeepSpeed {measure}"
        memory = _memory(runs.figures(arm, f"calm{WORKERS}"))
        rows.append([arm, spread(mine, 1), f"{name}: {spread(plain, 1)}", spread(pairs), memory])
    return _table(["arm", "samples/s", "plain", "ratio", "peak memory MB"], rows)


def speeds_table(runs: Runs) -> str:
    """Of plain training."""
    rows = [
        [arm, *(f"{speeds[n]:.1f}" if n in speeds else "-" for n in range(1, WORKERS + 1))]
        for arm in PLAIN
        if (speeds := runs.speeds(arm))
    ]
    return _table(["", *(f"{n}" for n in range(1, WORKERS + 1))], rows)


def settings_list(runs: Runs, arms: Sequence[str]) -> str:
    """What differs from a system's defaults."""
    lines = []
    for arm in arms:
        settings = next(_run(k)["settings"] for k in runs.kept if k.arm == arm)
        lines.append(f"- `{arm}`: " + ", ".join(f"{k} = {v}" for k, v in settings.items()))
    return "\n".join(lines)


def _about(runs: Runs) -> str:
    run = _run(next(k for k in runs.kept if k.trace in (TRACE, f"calm{WORKERS}")))
    work = run["workload"]
    loads = [_run(k)["load"] for k in runs.kept]
    return (
        f"GPT of {work['layers']} layers of width {work['width']}, blocks of {work['context'] + 1} bytes, batch "
        f"{work['batch']}, {work['steps']} steps, {work['device_ms']:g} ms of a device per sample, up to {WORKERS} "
        f"workers of one thread. Median (min-max, n). Load of the machine when the runs began: {min(loads):.1f} to "
        f"{max(loads):.1f}. "
        f"What the words mean: [the benchmark's page](../churn/README.md). What these numbers show and do not show: "
        f"[benchmarks](../README.md)."
    )


def _drawn(runs: Runs, arms: Sequence[str]) -> list[str]:
    found = {a: [f.goodput for f in runs.figures(a, TRACE) if f.goodput is not None] for a in arms}
    found = {a: g for a, g in found.items() if g}
    if not found:
        return []
    draw_goodput(found, RESULTS / "churn_goodput.png")
    logs = {a: next(k.log for k in runs.of(a, TRACE) if _ready(k)) for a in found}
    draw_progress(logs, runs.speeds("ddp"), schedule(TRACE, WORKERS), RESULTS / "churn_progress.png")
    return ["![goodput](churn_goodput.png)", "![samples over time](churn_progress.png)"]


def _distances(runs: Runs, arm: str) -> str:
    """Of the final parameters from those of the undisturbed run of the same system."""
    undisturbed = "ddp" if arm in PEERS else arm  # the peers' loops have the order and the first weights of plain DDP
    calm = [k for k in runs.of(undisturbed, f"calm{WORKERS}") if _finished(k)]
    finished = [k for k in runs.of(arm, TRACE) if _finished(k)]
    if not finished:
        return "not finished"
    if not calm:
        return "-"
    reference = np.load(calm[0].parameters)
    found = []
    for kept in finished:
        theirs = np.load(kept.parameters)
        same = theirs.tobytes() == reference.tobytes()
        found.append(0.0 if same else float(np.linalg.norm(theirs - reference) / np.linalg.norm(reference)))
    return f"equal bits (n={len(found)})" if not any(found) else f"{max(found):.1e} away (n={len(found)})"


def _memory(found: Sequence[Figures]) -> str:
    peaks = [f.peak_bytes / 2**20 for f in found if f.peak_bytes]
    return spread(peaks, 0) if peaks else "-"


def _counts(values: Sequence[int]) -> str:
    return f"{statistics.median(values):g} (most {max(values)})" if max(values) else "0"


def _spread(values: Sequence[float]) -> str:
    return spread(values, 2) if values else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured."
    line: Callable[[Sequence[str]], str] = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _run(kept: Kept) -> dict[str, Any]:
    return next(e for e in kept.log if e["kind"] == "run")


def _finished(kept: Kept) -> bool:
    end = next(e for e in kept.log if e["kind"] == "end")
    return end["steps"] == _run(kept)["steps"] and kept.parameters.exists()


def _ready(kept: Kept) -> bool:
    return any(e["kind"] == "ready" for e in kept.log)
