"""How the coordinator's work grows with the number of members: 8 to 1,000 of them, without torch, against the real one.

python -m benchmarks.control_plane [--members 8 32 128 512 1000] [--step 0.25] [--seconds 15] [--events 3]
python -m benchmarks.control_plane --profile --members 512      where the coordinator's time goes
python -m benchmarks.control_plane --into FILE                  in pieces, then: --show FILE
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import ray

import shoal
from benchmarks.common import RESULTS, machine, spread, write_result
from benchmarks.driven import Driven
from benchmarks.dummies import DummyFeed, DummyPool, DummyShell, Host, Watched, handles
from shoal.launch.api import RunOptions
from shoal.launch.cluster import Local, connect
from shoal.launch.prepare import prepare
from shoal.pool.spec import pool_name
from shoal.run_folder import RunFolder
from shoal.tasks import LanguageModel
from shoal.tracking.ledger import Entry, read

POOL = "dummies"
PER_NODE = 8
DEADLINE_S = 240.0


def job(members: int) -> shoal.Job:
    return shoal.Job(
        name="control-plane",
        task=LanguageModel(context=32, layers=1, heads=1, width=8),
        data=shoal.Data(train="builtin:stdlib", block=33),
        batch=shoal.Batch(size=members, virtual_shards=members),
        budget=shoal.Budget(steps=10**6),
        workers=shoal.Workers(min=1, max=members),
        engine=shoal.Engine(name="zero", stage=1),
        evaluation=shoal.Evaluation(every=None, samples=8),
        checkpoints=shoal.Checkpoints(every=None, export=False),
        failures=shoal.Failures(max_failures=-1, snapshot_every=10),
    )


@dataclass
class Found:
    """What one size showed. Seconds, unless it says otherwise."""

    members: int
    where: str = ""
    """The machine, and the commit."""
    start_s: float = 0.0
    """From the last member's being ready to the first commit."""
    steps_per_s: float = 0.0
    asked_per_s: float = 0.0
    cpu: float = 0.0
    """Of one core, at that rate."""
    cpu_per_step_ms: float = 0.0
    words_per_s: float = 0.0
    answer_ms: list[float] = field(default_factory=list)
    """Median and 99th percentile."""
    most_steps_per_s: float = 0.0
    """With members that take no time for a step."""
    rss_mb: float = 0.0
    host_cpu: float = 0.0
    changes: dict[str, list[float]] = field(default_factory=dict)
    """Of each kind: until the new view's first commit."""
    regroup: dict[str, list[float]] = field(default_factory=dict)
    change_cpu: dict[str, list[float]] = field(default_factory=dict)
    """Processor seconds of the coordinator from the event to that commit."""


class Bench:
    """A run of dummies."""

    def __init__(self, members: int, step_s: float, folder: RunFolder, plan: Any, node_id: str) -> None:
        self.members, self.folder = members, folder
        many = {"num_cpus": 0, "max_concurrency": 20_000}
        self.host = ray.remote(Host).options(**many).remote(step_s, PER_NODE)
        named = {"namespace": "shoal", "num_cpus": 0, "max_concurrency": 1000}
        self.pool = ray.remote(DummyPool).options(name=pool_name(POOL), **named).remote()
        feed = ray.remote(DummyFeed).options(num_cpus=0, max_concurrency=100).remote()
        self._made = 0
        shell = DummyShell("bench-coordinator", pool_name(POOL), node_id, feed)
        self.coordinator = ray.remote(Watched).options(name="bench-coordinator", **named).remote(None, shell)
        ray.get(self.coordinator.begin.remote(pickle.dumps(plan)))
        self.step_s = step_s

    def lend(self, count: int) -> None:
        names = [f"d{self._made + i}" for i in range(count)]
        self._made += count
        ray.get(self.pool.lend.remote(handles(self.host, names), self.members))

    def entries(self, kind: str) -> list[Entry]:
        return [e for e in read(self.folder.ledger)[0] if e["kind"] == kind]

    def step(self) -> int:
        return ray.get(self.coordinator.status.remote(None))[0].step

    def view(self) -> list[str]:
        return [m.member for m in ray.get(self.coordinator.members.remote()) if m.rank is not None]

    def usage(self) -> dict[str, float]:
        return ray.get(self.coordinator.usage.remote())

    def rate(self, seconds: float) -> tuple[float, dict[str, float]]:
        """Steps per second over so long, and what the coordinator used for them."""
        begun, first, before = time.monotonic(), self.step(), self.usage()
        time.sleep(seconds)
        last, after, took = self.step(), self.usage(), time.monotonic() - begun
        return (last - first) / took, {name: after[name] - before[name] for name in after}

    def change(self, what: str, do: Callable[[], None]) -> tuple[Entry, float]:
        """Make it happen; returns its entry in the ledger, and the coordinator's processor seconds until then."""
        known, before = len(self.entries("change")), self.usage()["cpu_s"]
        do()
        entry = wait(lambda: next((e for e in self.entries("change")[known:] if e["what"] == what), None))
        return entry, self.usage()["cpu_s"] - before

    def end(self) -> None:
        ray.get(self.coordinator.stop.remote("measured", False))
        for actor in (self.coordinator, self.pool, self.host):
            ray.kill(actor)


def wait(look: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    deadline = time.monotonic() + deadline_s
    while not (found := look()):
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.05)
    return found


@contextmanager
def running(members: int, step_s: float) -> Iterator[tuple[Bench, float]]:
    """A run that stands, and what its start took."""
    wanted = job(members)
    with tempfile.TemporaryDirectory() as root, connect(Local.of(job(8)), None) as connection:
        ready = prepare(wanted, RunOptions(runs_dir=Path(root)))
        plan = replace(
            ready.plan(connection), record=None, pool=POOL, hosted_by="bench-coordinator", driver_silence_s=1e9
        )
        bench = Bench(members, step_s, ready.folder, plan, connection.node_id)
        begun = time.monotonic()
        bench.lend(members)
        wait(lambda: bench.step() >= 1)
        yield bench, time.monotonic() - begun
        bench.end()


def measure(members: int, step_s: float, seconds: float, events: int) -> Found:
    with running(members, step_s) as (bench, took):
        found = Found(members, machine(), start_s=took, asked_per_s=1 / step_s)
        time.sleep(3.0)
        ray.get(bench.host.take_answers.remote())
        host = ray.get(bench.host.usage.remote())["cpu_s"]
        begun = time.monotonic()
        found.steps_per_s, used = bench.rate(seconds)
        passed = time.monotonic() - begun
        found.host_cpu = (ray.get(bench.host.usage.remote())["cpu_s"] - host) / passed
        answers = sorted(ray.get(bench.host.take_answers.remote()))
        found.answer_ms = [1e3 * statistics.median(answers), 1e3 * answers[int(0.99 * len(answers))]]
        found.words_per_s = len(answers) / passed
        found.cpu = used["cpu_s"] / passed
        found.cpu_per_step_ms = 1e3 * used["cpu_s"] / max(1.0, found.steps_per_s * passed)
        for _ in range(events):
            for what, do in (
                ("loss", lambda: ray.get(bench.host.kill.remote(bench.view()[-1]))),
                ("join", lambda: bench.lend(1)),
                ("leave", lambda: ray.get(bench.coordinator.end_worker.remote(bench.view()[-1], "leave"))),
                ("join", lambda: bench.lend(1)),
            ):
                entry, cpu = bench.change(what, do)
                parts = sum(entry[f"{part}_s"] for part in ("detect", "regroup", "state", "resume"))
                found.changes.setdefault(what, []).append(parts)
                found.regroup.setdefault(what, []).append(entry["detect_s"] + entry["regroup_s"])
                found.change_cpu.setdefault(what, []).append(cpu)
                time.sleep(1.0)
        ray.get(bench.host.pace.remote(1e-4))
        time.sleep(2.0)
        found.most_steps_per_s, _ = bench.rate(min(seconds, 8.0))
        found.rss_mb = bench.usage()["rss_mb"]
        return found


# How long it is -------------------------------------------------------------------------------------------------------


def by_length(members: int, steps: int, parts: int = 10) -> list[tuple[int, float, float]]:
    """A run of so many steps without Ray: after each part of it (step, microseconds of a step and member, MB)."""
    found = []
    with tempfile.TemporaryDirectory() as root:
        driven = Driven(members, Path(root))
        for part in range(1, parts + 1):
            begun, first = time.process_time(), driven.book.committed
            while driven.book.committed < steps * part // parts:
                driven.beat(16)
            took = (time.process_time() - begun) / (driven.book.committed - first) / members
            found.append((driven.book.committed, 1e6 * took, psutil.Process().memory_info().rss / 1e6))
    return found


# What is shown --------------------------------------------------------------------------------------------------------


def row(found: Found) -> str:
    """One line of the table."""
    kinds = ("loss", "join", "leave")
    changes = " | ".join(spread(found.changes[k], 2) if found.changes.get(k) else "" for k in kinds)
    return (
        f"| {found.members} | {found.start_s:.1f} | {found.steps_per_s:.2f} of {found.asked_per_s:g} "
        f"| {found.words_per_s:.0f} | {100 * found.cpu:.0f} % | {found.cpu_per_step_ms:.1f} "
        f"| {1e3 * found.cpu_per_step_ms / found.members:.0f} | {found.answer_ms[0]:.0f} / {found.answer_ms[1]:.0f} "
        f"| {changes} | {found.rss_mb:.0f} | {100 * found.host_cpu:.0f} % |"
    )


HEAD = (
    "| members | first commit s | steps/s | words/s | coordinator's core | CPU ms per step | CPU us by members "
    "| answer ms (median / 99 %) | loss s | join s | leave s | MB | dummies' core |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def show(found: list[Found], before: list[Found], lengths: list[tuple[int, float, float]]) -> None:
    """The page, and the picture in it."""
    picture(found, before)
    text = (
        f"# How the coordinator's work grows\n\n{found[-1].where}\n\n"
        f"Members without torch that speak the workers' protocol, in one process; the coordinator is the real one, in "
        f"its own. A step takes a member {1 / found[0].asked_per_s:g} s; ZeRO 1, a copy each 10 steps, "
        f"{PER_NODE} members on a node. Changes: from the event to the first commit after it, one step included. "
        f"Members form no group and move no state.\n\n{HEAD}" + "\n".join(map(row, found)) + "\n"
    )
    if before:
        text += f"\nBefore, {before[-1].where}:\n\n{HEAD}" + "\n".join(map(row, before)) + "\n"
    text += "\n![growth](control_plane.png)\n"
    if lengths:
        text += "\nOver the length of a run, 4 members, without Ray (the dummies' side included):\n\n"
        text += "| steps committed | us per step and member | MB of the process |\n|---|---|---|\n"
        text += "\n".join(f"| {step} | {us:.0f} | {mb:.0f} |" for step, us, mb in lengths) + "\n"
    write_result("control_plane", text)


def picture(found: list[Found], before: list[Found]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for runs, style, name in ((found, "o-", ""), (before, "x--", ", before")):
        if not runs:
            continue
        sizes = [f.members for f in runs]
        left.plot(sizes, [f.cpu_per_step_ms for f in runs], style, label=f"coordinator{name}")
        for kind in ("loss", "join", "leave"):
            right.plot(sizes, [statistics.median(f.changes[kind]) for f in runs], style, label=f"{kind}{name}")
    for axes, title in ((left, "CPU ms of a step"), (right, "s from the event to the next commit")):
        axes.set(xscale="log", yscale="log", xlabel="members", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "control_plane.png", dpi=100)


def load(path: Path | None) -> list[Found]:
    if path is None:
        return []
    return [Found(**json.loads(line)) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[8, 32, 128, 512, 1000])
    parser.add_argument("--step", type=float, default=0.25)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--events", type=int, default=3)
    parser.add_argument("--length", type=int, default=100_000, help="steps of the long run without Ray; 0: none")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--into", type=Path, help="append what is found to this file and write no page")
    parser.add_argument("--show", type=Path, help="measure nothing: the page of what was found so")
    parser.add_argument("--before", type=Path, help="for the page: what was found so with an earlier version")
    options = parser.parse_args()
    found = load(options.show)
    for members in options.members if options.show is None else ():
        if options.profile:
            with running(members, options.step) as (bench, took):
                print(f"{members} members: {took:.1f} s until the first commit")
                print(ray.get(bench.coordinator.profile.remote(options.seconds)), flush=True)
            continue
        found.append(measure(members, options.step, options.seconds, options.events))
        print(json.dumps(asdict(found[-1])), flush=True)
        if options.into:
            with open(options.into, "a") as file:
                file.write(json.dumps(asdict(found[-1])) + "\n")
    if options.into is None and not options.profile:
        show(found, load(options.before), by_length(4, options.length) if options.length else [])


if __name__ == "__main__":
    main()
