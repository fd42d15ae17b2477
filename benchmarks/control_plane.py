"""How the coordinator's work grows with the number of members: 8 to 1,000 of them, without torch, against the real one.

python -m benchmarks.control_plane [--members 8 32 128 512 1000] [--step 0.25] [--seconds 15] [--events 3]
python -m benchmarks.control_plane --profile --members 512      where the coordinator's time goes
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

import ray

import shoal
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
        found = Found(members, start_s=took, asked_per_s=1 / step_s)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[8, 32, 128, 512, 1000])
    parser.add_argument("--step", type=float, default=0.25)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--events", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--into", type=Path, help="append what is found to this file, one JSON object per size")
    options = parser.parse_args()
    for members in options.members:
        if options.profile:
            with running(members, options.step) as (bench, took):
                print(f"{members} members: {took:.1f} s until the first commit")
                print(ray.get(bench.coordinator.profile.remote(options.seconds)))
            continue
        found = measure(members, options.step, options.seconds, options.events)
        print(json.dumps(asdict(found)), flush=True)
        if options.into:
            with open(options.into, "a") as file:
                file.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    main()
