"""Fault-free overhead: Shoal against the same training written by hand with torch DDP and with DeepSpeed ZeRO 1, 2, 3.

Same model, data, batch, optimizer and number of workers; data loading included. All arms of an engine are up at the
same time, and all but one are stopped (SIGSTOP, with everything that they have started): they take turns of a few
seconds, so that a machine whose speed drifts or that others use hits all alike. What an arm has done in its turns is
counted in samples that went through the model. Warm-up is long enough for what a run does once, beside its first steps:
importing MLflow and opening its database takes about 5 seconds of one core.

`--ray` adds the plain loop in bare Ray tasks, without Shoal: what that loses is what Ray's own processes take.

    python -m benchmarks.overhead [--n 5] [--workers 2] [--engines ddp zero1 zero2 zero3] [--ray]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import psutil

import shoal
from benchmarks.common import machine, ratios, spread, write_result
from benchmarks.plain import Counted
from shoal.cli.display import PlainDisplay
from shoal.data.sources import resolve
from shoal.launch.api import RunOptions, run_job
from shoal.launch.cluster import Local, connect

BATCH, WARM = 32, 40
TURN_S, TURNS = 2.0, 12
"""Seconds of a turn, and turns of each arm that make one figure. While it is stopped no arm may miss what its own
watchers wait for: a member that says nothing for 5 s is taken for dead."""
ENDLESS = 10**6
DEADLINE_S = 300.0
TASK = {"context": 128, "layers": 4, "heads": 4, "width": 192}
NAMES = {"plain": "plain", "ray": "plain, in Ray tasks", "shoal": "Shoal"}


def job(engine: str, workers: int, count: str) -> shoal.Job:
    kind = shoal.Engine() if engine == "ddp" else shoal.Engine(name="zero", stage=int(engine[-1]))  # type: ignore[arg-type]
    return shoal.Job(
        name="overhead",
        task=Counted(**TASK, count=count),  # type: ignore[arg-type]
        data=shoal.Data(train="builtin:stdlib", block=TASK["context"] + 1),
        batch=shoal.Batch(size=BATCH, virtual_shards=8),
        budget=shoal.Budget(steps=ENDLESS),
        workers=shoal.Workers(min=workers, max=workers),
        engine=kind,
        evaluation=shoal.Evaluation(every=None, samples=8),
        checkpoints=shoal.Checkpoints(every=None, export=False),
    )


# The arms, each in a process of its own ------------------------------------------------------------------------------


def run_shoal(engine: str, workers: int, spec: SimpleNamespace) -> None:
    run_job(
        job(engine, workers, spec.count),
        options=RunOptions(runs_dir=Path(spec.runs)),
        display=PlainDisplay(quiet=True),
    )


def run_plain(engine: str, workers: int, spec: SimpleNamespace) -> None:
    port, path = free_port(), Path(spec.runs) / f"{engine}.json"
    path.write_text(json.dumps(vars(spec)))
    command = [sys.executable, str(Path(__file__).with_name("plain.py")), engine]
    ranks = [subprocess.Popen([*command, str(r), str(workers), port, str(path)]) for r in range(workers)]
    for rank in ranks:
        rank.wait()


def run_in_ray(engine: str, workers: int, spec: SimpleNamespace) -> None:
    """On a cluster started as Shoal starts its own."""
    import ray

    from benchmarks.plain import train

    with connect(Local.of(job(engine, workers, spec.count)), None):
        port = free_port()
        ray.get([ray.remote(num_cpus=1)(train).remote(engine, r, workers, port, spec) for r in range(workers)])


ARMS = {"plain": run_plain, "ray": run_in_ray, "shoal": run_shoal}


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


# Taking turns --------------------------------------------------------------------------------------------------------


@dataclass
class Arm:
    """One loop that runs for ever, and can be made to pause."""

    process: subprocess.Popen[bytes]
    count: Path
    speeds: list[float] = field(default_factory=list)
    """Samples per second, of `TURNS` turns each."""

    @property
    def samples(self) -> int:
        """That went through the model so far."""
        return self.count.stat().st_size

    def signal(self, number: signal.Signals) -> None:
        """To everything that it has started."""
        assert self.process.poll() is None, f"the arm of {self.count.stem} has ended"
        one = psutil.Process(self.process.pid)
        for each in (one, *one.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def turn(self) -> tuple[int, float]:
        """Let it run for a while: samples, and seconds."""
        before, begun = self.samples, time.perf_counter()
        self.signal(signal.SIGCONT)
        time.sleep(TURN_S)
        self.signal(signal.SIGSTOP)
        return self.samples - before, time.perf_counter() - begun

    def warm_up(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while self.samples < WARM * BATCH:
            assert self.process.poll() is None, f"the arm of {self.count.stem} has ended"
            assert time.monotonic() < deadline, f"the arm of {self.count.stem} did not get warm in {DEADLINE_S:g} s"
            time.sleep(0.1)
        self.signal(signal.SIGSTOP)


@contextmanager
def started(kind: str, engine: str, workers: int, data: str, folder: Path) -> Iterator[Arm]:
    """One arm, warm and stopped."""
    count = folder / f"{kind}-{engine}.count"
    count.touch()
    spec = {
        "steps": ENDLESS, "batch": BATCH, "task": TASK, "count": str(count), "data": data, "lr": 1e-3, "threads": 1,
        "runs": str(folder),
    }  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.overhead", "--arm", kind, "--engines", engine]
    process = subprocess.Popen([*command, "--workers", str(workers), "--spec", json.dumps(spec)])
    arm = Arm(process, count)
    try:
        arm.warm_up()
        yield arm
    finally:
        everything = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def measure(arms: Sequence[Arm], n: int) -> None:
    """Fill in `speeds`: all arms by turns, the order reversed each round."""
    for _ in range(n):
        found: dict[int, list[tuple[int, float]]] = {i: [] for i in range(len(arms))}
        for turn in range(TURNS):
            for i in list(found) if turn % 2 == 0 else list(reversed(found)):
                found[i].append(arms[i].turn())
        for i, turns in found.items():
            arms[i].speeds.append(sum(samples for samples, _ in turns) / sum(seconds for _, seconds in turns))
            print(f"  {arms[i].count.stem}: {arms[i].speeds[-1]:.1f} samples/s", flush=True)


def compare(engine: str, kinds: Sequence[str], workers: int, n: int, data: str, folder: Path) -> dict[str, list[float]]:
    """Samples per second of each arm of one engine."""
    with ExitStack() as stack:
        arms = {kind: stack.enter_context(started(kind, engine, workers, data, folder)) for kind in kinds}
        measure(list(arms.values()), n)
        return {kind: arm.speeds for kind, arm in arms.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5, help=f"figures, of {TURNS} turns of {TURN_S:g} s of each arm")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["ddp", "zero1", "zero2", "zero3"])
    parser.add_argument("--ray", action="store_true", help="also the plain loop in bare Ray tasks")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--spec", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        ARMS[options.arm](options.engines[0], options.workers, SimpleNamespace(**options.spec))
        return
    kinds = [kind for kind in ARMS if kind != "ray" or options.ray]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = resolve(job("ddp", 1, os.devnull).data, Path(folder), ("tokens",)).train.uri
        for engine in options.engines:
            print(f"{engine}:", flush=True)
            found = compare(engine, kinds, options.workers, options.n, data, Path(folder))
            for kind, speeds in found.items():
                to_plain = spread(ratios(speeds, found["plain"])) if kind != "plain" else ""
                rows.append(f"| {engine} | {NAMES[kind]} | {spread(speeds, 1)} | {to_plain} |")
    write_result(
        f"overhead_{options.workers}_workers",
        f"# Fault-free overhead, {options.workers} workers\n\n{machine()}\n\n"
        f"GPT {TASK}, batch {BATCH} of {TASK['context'] + 1} bytes, fp32, AdamW, clipping. All loops are up, and take "
        f"turns of {TURN_S:g} s while the others are stopped; a figure is of {TURNS} turns; median (min-max, n).\n\n"
        "| engine | loop | samples/s | to plain |\n|---|---|---|---|\n" + "\n".join(rows) + "\n",
    )


if __name__ == "__main__":
    main()
