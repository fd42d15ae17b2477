"""How far `shoal simulate` is off: its predictions beside what was measured.

Two comparisons. The first takes the simulator's own defaults for everything but the step time and the speed of this
machine's loopback, and predicts the small losses, joins and leaves of benchmarks/results/recovery.md. The second runs
a real job of four workers while workers are killed and sent away, plays what happened to them through the simulator
with the costs of recovery.md, and compares how many steps were done and how long each change held up the run.

    python -m benchmarks.simulated [--engines replicated zero2] [--cycles 3]
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from benchmarks.common import RESULTS, machine, spread, write_result
from benchmarks.recovery import BATCH, SHARDS, TASK, WORKERS, Conductor, job
from shoal.coordinator.status import MemberStatus
from shoal.launch.api import RunOptions, run_job
from shoal.run_folder import RunFolder
from shoal.simulate.costs import STATE_BYTES, Costs
from shoal.simulate.methods import Method
from shoal.simulate.play import Play, Setting
from shoal.simulate.trace import Event, Trace
from shoal.simulate.work import Work
from shoal.tracking.ledger import Entry, read

PARAMETERS = 10.8e6
CORES = 2
LOOPBACK = 1.5e9
"""Bytes per second of a plain copy between two members, benchmarks/results/reshard.md."""
SPACE_S = 8.0
"""Of undisturbed training after each change."""
PARTS = ("detect", "regroup", "state", "resume")


# What was measured ---------------------------------------------------------------------------------------------------


@dataclass
class Measured:
    """One engine's part of recovery.md: medians in seconds."""

    step_s: float
    kill_s: float
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    """By event and part."""


def measured(text: str) -> dict[str, Measured]:
    """The tables of recovery.md; of an engine that was measured twice, the later one."""
    found: dict[str, Measured] = {}
    for line in text.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        numbers = [float(m.group()) if (m := re.match(r"[\d.]+", c)) else None for c in cells[1:]]
        if len(cells) == 6 and cells[0] not in ("engine", "---") and cells[1] in ("loss", "join", "leave"):
            values = [n for n in numbers[1:] if n is not None]
            found[cells[0]].parts[cells[1]] = dict(zip(PARTS, values, strict=True))
        elif len(cells) == 6 and None not in numbers:
            found[cells[0]] = Measured(numbers[0], numbers[1])  # type: ignore[arg-type]
    return found


def stage_of(engine: str) -> int:
    return 0 if engine == "replicated" else int(engine[-1])


def a_work(engine: str, costs: Costs) -> Work:
    return Work(model_size=PARAMETERS, tokens=1.0, virtual_shards=SHARDS, stage=stage_of(engine), costs=costs)


def shard_s(step_s: float) -> float:
    """Four workers share two cores."""
    return step_s / (SHARDS / CORES)


def by_default(engine: str, said: Measured) -> Work:
    """The simulator's defaults, with this machine's speed."""
    costs = Costs(shard_s=shard_s(said.step_s), at_once=CORES, bandwidth=LOOPBACK, detect_s=0.05)
    return a_work(engine, costs)


def calibrated(engine: str, said: Measured, step_s: float, start_s: float) -> Work:
    """The costs of recovery.md; of the run itself only how long a step and a start take."""
    mid = {part: statistics.median(said.parts[what][part] for what in said.parts) for part in PARTS}
    moved = STATE_BYTES * PARAMETERS / max(0.01, said.parts["join"]["state"])
    costs = Costs(
        shard_s=shard_s(step_s), at_once=CORES, start_s=start_s, detect_s=said.parts["loss"]["detect"],
        regroup_s=mid["regroup"], regroup_per_worker_s=0.0, resume_s=max(0.0, mid["resume"] - said.step_s),
        bandwidth=LOOPBACK if stage_of(engine) else moved, state_s=mid["state"] if stage_of(engine) else None,
        host_copy=1e18,
    )  # fmt: skip
    return a_work(engine, costs)


# A real run ----------------------------------------------------------------------------------------------------------


@dataclass
class Events(Conductor):
    """Kills one worker and sends one away in turn, and notes who came and went, and when."""

    window: tuple[float, float] = (0.0, 0.0)
    here: tuple[str, ...] = ()
    """Members when the window begins."""
    gone: list[tuple[float, str, bool]] = field(default_factory=list)
    """(Unix seconds, member, whether it was announced)."""
    began: dict[str, float] = field(default_factory=dict)
    ready: dict[str, float] = field(default_factory=dict)
    """Unix seconds when each worker was asked for, and when it was ready."""

    def _conduct(self) -> None:
        from shoal.launch.supervise import find

        coordinator = find(self.run_id)
        try:
            members = self._whole(coordinator)
            self.here, begin = tuple(m.member for m in members), time.time()
            for i in range(2 * self.events):
                victim = self._quiet(coordinator)[i % WORKERS]
                self.gone.append((time.time(), victim.member, bool(i % 2)))
                if i % 2:
                    ray.get(coordinator.end_worker.remote(victim.member, "leave"))
                else:
                    assert victim.pid is not None
                    os.kill(victim.pid, signal.SIGKILL)
                self._until_gone(coordinator, victim.member)
            self._quiet(coordinator)
            self.window = begin, time.time()
        except Exception as error:  # noqa: BLE001 - told by the main thread, which waits for the run's end
            self.failure = repr(error)
        ray.get(coordinator.stop.remote("measured"))

    def _quiet(self, coordinator: Any) -> list[MemberStatus]:
        """All are members, and have been for a while."""
        until: float | None = None
        while until is None or time.monotonic() < until:
            members: Sequence[MemberStatus] = ray.get(coordinator.members.remote())
            for m in members:
                at = self.began if m.state == "starting" else self.ready
                if m.since is not None:
                    at.setdefault(m.member, m.since)
            if sum(m.state == "member" for m in members) < WORKERS:
                until = None
            elif until is None:
                until = time.monotonic() + SPACE_S
            time.sleep(0.1)
        return [m for m in members if m.state == "member"]


@dataclass
class Real:
    """One run, as its ledger has it."""

    events: Events
    entries: list[Entry]

    @property
    def seconds(self) -> float:
        begin, end = self.events.window
        return end - begin

    @property
    def steps(self) -> int:
        """Committed in the window."""
        begin, end = self.events.window
        commits = [e for e in self.entries if e["kind"] == "commit" and begin <= e["time"] <= end]
        return commits[-1]["step"] - commits[0]["step"]

    @property
    def step_s(self) -> float:
        """Of undisturbed steps: all are there, nobody is starting, and the view is not new."""
        begin, end = self.events.window
        busy = [(at, self.events.ready.get(m, at) + 1.0) for m, at in self.events.began.items()]
        commits = [e for e in self.entries if e["kind"] == "commit" and begin <= e["time"] <= end]
        settled = [e for e, earlier in zip(commits[3:], commits, strict=False) if earlier["view"] == e["view"]]
        calm = [e for e in settled if not any(a <= e["time"] <= b for a, b in busy)]
        return statistics.median(e["step_s"] for e in calm if e["workers"] == WORKERS)

    @property
    def start_s(self) -> float:
        began, ready = self.events.began, self.events.ready
        return statistics.median(ready[m] - at for m, at in began.items() if m in ready)

    def changes(self, what: str) -> list[Entry]:
        return [e for e in self.entries if e["kind"] == "change" and e["what"] == what]

    def trace(self, shift_s: float) -> Trace:
        """What happened, `shift_s` later than in the window, for the simulator has to start the run first."""
        begin, _ = self.events.window
        events = [Event(0.0, "add", m) for m in self.events.here]
        events += [Event(at - begin + shift_s, "add", m) for m, at in self.events.began.items() if at > begin]
        for at, member, announced in self.events.gone:
            soon = 5.0 if announced else 0.0  # it leaves at the next boundary
            events.append(Event(at - begin + shift_s + soon, "remove", member, soon))
        return Trace(tuple(sorted(events, key=lambda e: e.at_s)), self.seconds + shift_s, "a real run")


def run(engine: str, cycles: int, root: Path) -> Real:
    events = Events(cycles)
    outcome = run_job(job(engine, 10**6), options=RunOptions(runs_dir=root), display=events)
    assert events.failure is None, events.failure
    return Real(events, read(RunFolder(Path(outcome.folder)).ledger)[0])


# Side by side --------------------------------------------------------------------------------------------------------


def off(predicted: float, was: float) -> str:
    """`+12 %`."""
    return f"{100 * (predicted / was - 1):+.0f} %" if was else "-"


def small_changes(tables: Mapping[str, Measured]) -> str:
    rows = []
    for engine, said in tables.items():
        work = by_default(engine, said)
        method = Method(name="in place", checkpoint_every=10**6, snapshot_every=1)
        kill = work.costs.detect_s + method.stop_s(work, WORKERS - 1, 0, from_memory=True) + work.step_s(WORKERS - 1)
        for what, predicted, was in (
            ("kill to next commit", kill, said.kill_s),
            ("state, at a join", work.move_s(WORKERS, 1), said.parts["join"]["state"]),
            ("regroup, at a join", work.regroup_s(WORKERS), said.parts["join"]["regroup"]),
        ):
            rows.append(f"| {engine} | {what} | {predicted:.2f} | {was:.2f} | {off(predicted, was)} |")
    head = "| engine | what | predicted s | measured s | off by |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def whole_runs(reals: Mapping[str, Real], tables: Mapping[str, Measured]) -> str:
    rows = []
    for engine, real in reals.items():
        work = calibrated(engine, tables[engine], real.step_s, real.start_s)
        shift = work.costs.start_s + work.regroup_s(WORKERS) + work.costs.resume_s
        trace = real.trace(shift)
        setting = Setting(work=work, trace=trace, length_s=trace.length_s, per_node=1, nodes=WORKERS)
        played = Play(setting, Method(name="in place", checkpoint_every=10**6, snapshot_every=1)).play()
        undisturbed = real.seconds / real.step_s
        held = {
            "loss": [c.stop_s for c in played.changes if c.what == "loss"],
            "change": [c.stop_s for c in played.changes if c.what == "change"],
        }
        was = {
            "loss": [_stop(e, real.step_s) for e in real.changes("loss")],
            "change": [_stop(e, real.step_s) for w in ("join", "leave") for e in real.changes(w)],
        }
        lines: Iterable[tuple[str, float, float, int]] = (
            ("steps in the window", played.progress.done, real.steps, 0),
            ("goodput (steps by undisturbed steps)", played.progress.done / undisturbed, real.steps / undisturbed, 3),
            ("stop of a loss, median s", statistics.median(held["loss"]), statistics.median(was["loss"]), 2),
            (
                "stop of a join or leave, median s",
                statistics.median(held["change"]),
                statistics.median(was["change"]),
                2,
            ),
            ("views", len(played.changes) - 1, len({e["view"] for e in real.entries if e["kind"] == "change"}), 0),
            ("steps redone", played.progress.redone, sum(e["steps_redone"] for e in real.changes("loss")), 0),
        )
        rows += [f"| {engine} | {what} | {p:.{d}f} | {m:.{d}f} | {off(p, m)} |" for what, p, m, d in lines]
        told = f"{real.seconds:.0f} s, {len(real.events.gone)} removals, {real.step_s:.3f} s a step"
        told += f", start {real.start_s:.1f} s"
        rows.append(f"| {engine} | *the run* | | {told} | |")
        print(f"  {engine}: losses {spread(was['loss'])}, changes {spread(was['change'])}", flush=True)
    head = "| engine | what | predicted | measured | off by |\n|---|---|---|---|---|\n"
    return head + "\n".join(rows)


def _stop(change: Entry, step_s: float) -> float:
    """Seconds until the next view went on: what is written down reaches to the first commit of it."""
    return sum(change[f"{part}_s"] for part in PARTS) - step_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["replicated", "zero2"])
    parser.add_argument("--cycles", type=int, default=3)
    options = parser.parse_args()
    tables = measured((RESULTS / "recovery.md").read_text())
    reals: dict[str, Real] = {}
    with tempfile.TemporaryDirectory() as root:
        for engine in options.engines:
            print(f"{engine}:", flush=True)
            reals[engine] = run(engine, options.cycles, Path(root))
    what = f"GPT {TASK} (10.8M parameters), batch {BATCH}, {SHARDS} virtual shards, fp32"
    what += f", {WORKERS} workers on {CORES} cores"
    write_result(
        "simulated",
        f"# The simulator beside what was measured\n\n{machine()}\n\n{what}\n\n"
        f"## A whole run under kills and leaves\n\nCosts from [recovery.md](recovery.md); how long a step and a start "
        f"take, and when workers came and went, from the run.\n\n{whole_runs(reals, tables)}\n\n"
        f"## Small changes, by the simulator's defaults\n\nEverything but the step time, the loopback's bandwidth "
        f"({LOOPBACK:g} B/s) and detect_s=0.05 is the default that stands for large clusters.\n\n"
        f"{small_changes(tables)}\n",
    )


if __name__ == "__main__":
    main()
