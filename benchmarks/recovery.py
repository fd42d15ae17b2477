"""What a change of the members costs: kills, announced leaves and joins in a run that goes on, in every engine.

One run per engine, 4 workers. A conductor beside it kills a worker's process (SIGKILL), waits until the run is whole
again, asks one to leave, waits, and so on. The time from a kill to the next committed step is that between the signal
and the first commit of the next view, as the ledger has it; what a join or a leave costs is the time in which the
members that stayed did no step, on their own clocks.

    python -m benchmarks.recovery [--events 10] [--engines replicated zero1 zero2 zero3]
    python -m benchmarks.recovery --cost [--n 5]      what snapshots cost when nothing happens
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

import shoal
from benchmarks.common import interleave, machine, ratios, spread, write_result
from shoal.cli.display import PlainDisplay
from shoal.coordinator.status import MemberStatus, Outcome, RunStatus
from shoal.launch.api import RunOptions, run_job
from shoal.launch.supervise import find
from shoal.run_folder import RunFolder
from shoal.tasks import LanguageModel
from shoal.tracking.ledger import Entry, read

WORKERS, BATCH, SHARDS = 4, 8, 8
TASK = {"context": 32, "layers": 6, "heads": 6, "width": 384}
"""About 10.8 million parameters; short samples, so that a step takes a fraction of a second on two cores."""
DEADLINE_S = 180.0


def job(engine: str, steps: int, snapshot_every: int | None = None) -> shoal.Job:
    kind = shoal.Engine() if engine == "replicated" else shoal.Engine(name="zero", stage=int(engine[-1]))  # type: ignore[arg-type]
    return shoal.Job(
        name="recovery",
        task=LanguageModel(**TASK),  # type: ignore[arg-type]
        data=shoal.Data(train="builtin:stdlib", block=TASK["context"] + 1),
        batch=shoal.Batch(size=BATCH, virtual_shards=SHARDS),
        budget=shoal.Budget(steps=steps),
        workers=shoal.Workers(min=1, max=WORKERS),
        engine=kind,
        evaluation=shoal.Evaluation(every=None, samples=8),
        checkpoints=shoal.Checkpoints(every=None, export=False),
        failures=shoal.Failures(max_failures=-1, snapshot_every=snapshot_every),
    )


@dataclass
class Conductor:
    """A display that makes things happen once the run stands."""

    events: int
    run_id: str = ""
    kills: list[float] = field(default_factory=list)
    """When each worker was killed, Unix seconds."""
    failure: str | None = None
    _thread: threading.Thread | None = None

    def started(self, info: Mapping[str, Any]) -> None:
        self.run_id = info["run_id"]

    def status(self, status: RunStatus) -> None:
        if self._thread is None and status.phase == "training":
            self._thread = threading.Thread(target=self._conduct, daemon=True)
            self._thread.start()

    def event(self, kind: str, text: str) -> None:
        if kind in ("join", "leave", "loss", "hang", "warning"):
            print(f"  {kind}: {text}", flush=True)

    def finished(self, outcome: Outcome) -> None:
        pass

    def _conduct(self) -> None:
        coordinator = find(self.run_id)
        try:
            for i in range(self.events):
                victim = self._whole(coordinator)[i % WORKERS]
                self.kills.append(time.time())
                assert victim.pid is not None
                os.kill(victim.pid, signal.SIGKILL)
                self._until_gone(coordinator, victim.member)
                leaver = self._whole(coordinator)[i % WORKERS]
                ray.get(coordinator.end_worker.remote(leaver.member, "leave"))
                self._until_gone(coordinator, leaver.member)
            self._whole(coordinator)
        except Exception as error:  # noqa: BLE001 - told by the main thread, which waits for the run's end
            self.failure = repr(error)
        ray.get(coordinator.stop.remote("measured"))

    def _whole(self, coordinator: Any) -> list[MemberStatus]:
        """Wait until all workers are members and steps are committed; returns them in rank order."""

        def look() -> list[MemberStatus]:
            members = [m for m in ray.get(coordinator.members.remote()) if m.state == "member"]
            return members if len(members) == WORKERS and all(m.step_s for m in members) else []

        members: list[MemberStatus] = _wait(look)
        time.sleep(1.0)  # a second of undisturbed steps, so that no change sees the tail of the one before
        return members

    def _until_gone(self, coordinator: Any, member: str) -> None:
        _wait(lambda: all(m.member != member for m in ray.get(coordinator.members.remote())))


def _wait(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.1)
    return found


@dataclass
class Found:
    """What one run showed, by event."""

    kill_s: list[float]
    redone: list[int]
    changes: dict[str, list[Entry]]
    step_s: float


def measure(engine: str, events: int, root: Path) -> Found:
    conductor = Conductor(events)
    outcome = run_job(job(engine, 10**6), options=RunOptions(runs_dir=root), display=conductor)
    assert conductor.failure is None, conductor.failure
    entries = read(RunFolder(Path(outcome.folder)).ledger)[0]
    commits = [e for e in entries if e["kind"] == "commit"]
    changes: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry["kind"] == "change":
            changes.setdefault(entry["what"], []).append(entry)
    views = [e for e in entries if e["kind"] == "view"]
    kill_s = []
    for killed in conductor.kills:
        after = next(v for v in views if v["time"] > killed)["number"]
        kill_s.append(next(c for c in commits if c["view"] >= after)["time"] - killed)
    return Found(
        kill_s,
        [c["steps_redone"] for c in changes.get("loss", [])],
        changes,
        statistics.median(c["step_s"] for c in commits if c["workers"] == WORKERS),
    )


def recovery(engines: list[str], events: int) -> str:
    rows, parts = [], []
    with tempfile.TemporaryDirectory() as root:
        for engine in engines:
            print(f"{engine}:", flush=True)
            found = measure(engine, events, Path(root))
            idle = {what: [e["idle_s"] for e in found.changes.get(what, [])] for what in ("join", "leave")}
            rows.append(
                f"| {engine} | {spread([found.step_s])} | {spread(found.kill_s)} | {spread(idle['join'])} "
                f"| {spread(idle['leave'])} | {statistics.median(found.redone):g} (most {max(found.redone)}) |"
            )
            for what in ("loss", "join", "leave"):
                costs = [
                    spread([e[f"{part}_s"] for e in found.changes[what]], 2)
                    for part in ("detect", "regroup", "state", "resume")
                ]
                parts.append(f"| {engine} | {what} | {' | '.join(costs)} |")
    return (
        "| engine | step s | kill to next commit s | join: idle s | leave: idle s | steps redone after a kill |\n"
        "|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nWhere it goes:\n\n| engine | event | detect s | regroup s | state s | resume s |\n"
        + "|---|---|---|---|---|---|\n"
        + "\n".join(parts)
    )


def cost(engines: list[str], n: int) -> str:
    """Step time with default snapshots against none after the first, in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as root:

        def arm(engine: str, every: int | None) -> float:
            outcome = run_job(
                job(engine, 60, every), options=RunOptions(runs_dir=Path(root)), display=PlainDisplay(quiet=True)
            )
            entries = read(RunFolder(Path(outcome.folder)).ledger)[0]
            return statistics.mean(e["step_s"] for e in entries if e["kind"] == "commit" and e["step"] > 10)

        for engine in engines:
            if engine == "replicated":
                continue
            found = interleave(
                {"default": lambda e=engine: arm(e, None), "none": lambda e=engine: arm(e, 10**6)},  # type: ignore[misc]
                n,
                lambda name, s: print(f"  snapshots {name}: {s:.4f} s", flush=True),
            )
            rows.append(
                f"| {engine} | {spread(found['none'])} | {spread(found['default'])} "
                f"| {spread(ratios(found['default'], found['none']))} |"
            )
    return "| engine | none: s per step | default: s per step | ratio |\n|---|---|---|---|\n" + "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--engines", nargs="+", default=["replicated", "zero1", "zero2", "zero3"])
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    what = f"GPT {TASK} (10.8M parameters), batch {BATCH}, {SHARDS} virtual shards, fp32, {WORKERS} workers"
    if options.cost:
        table = cost(options.engines, options.n)
        write_result(
            "snapshots",
            f"# What snapshots cost when nothing happens\n\n{machine()}\n\n{what}; mean step time\n\n{table}\n",
        )
        return
    table = recovery(options.engines, options.events)
    write_result("recovery", f"# What a change of the members costs\n\n{machine()}\n\n{what}\n\n{table}\n")


if __name__ == "__main__":
    main()
