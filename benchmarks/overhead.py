"""Fault-free overhead: Shoal against the same training written by hand with torch DDP and with DeepSpeed ZeRO 1, 2, 3.

Same model, data, batch, optimizer and number of workers; data loading included; arms interleaved; after warm-up, which
is long enough for what a run does once, beside its first steps: importing MLflow and opening its database takes about 5
seconds of one core. While a plain arm runs, no Ray cluster is up. `--ray` adds a third arm: the plain loop in bare Ray
tasks, without Shoal; what that loses is what Ray's own processes take where no core is left for them.

Two figures: samples per second by the median step, which a burst of another tenant of the machine does not move, and by
the whole stretch, which also holds whatever Shoal does now and then.

    python -m benchmarks.overhead [--n 5] [--workers 2] [--engines ddp zero1 zero2 zero3] [--ray]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import shoal
from benchmarks.common import interleave, machine, ratios, spread, write_result
from shoal.cli.display import make_display
from shoal.data.sources import resolve
from shoal.launch.api import RunOptions, run_job
from shoal.launch.cluster import Local, connect
from shoal.run_folder import RunFolder
from shoal.tasks import LanguageModel
from shoal.tracking.ledger import effective, read

ROOT = Path(__file__).resolve().parents[1]
STEPS, WARM, BATCH = 90, 40, 32
NAMES = {"ray": "plain, in Ray tasks", "shoal": "Shoal"}
TASK = {"context": 128, "layers": 4, "heads": 4, "width": 192}


def job(engine: str, workers: int) -> shoal.Job:
    kind = shoal.Engine() if engine == "ddp" else shoal.Engine(name="zero", stage=int(engine[-1]))
    return shoal.Job(
        name="overhead",
        task=LanguageModel(**TASK),
        data=shoal.Data(train="builtin:stdlib", block=TASK["context"] + 1),
        batch=shoal.Batch(size=BATCH, virtual_shards=8),
        budget=shoal.Budget(steps=STEPS),
        workers=shoal.Workers(min=workers, max=workers),
        engine=kind,
        evaluation=shoal.Evaluation(every=None, samples=8),
        checkpoints=shoal.Checkpoints(every=None, export=False),
    )


@dataclass(frozen=True)
class Speed:
    """Samples per second."""

    median: float
    whole: float


def speed(taken: list[float]) -> Speed:
    """From the seconds of each step."""
    return Speed(BATCH / statistics.median(taken), len(taken) * BATCH / sum(taken))


def run_shoal(engine: str, workers: int, runs: Path) -> Speed:
    with make_display(quiet=True) as display:
        outcome = run_job(job(engine, workers), options=RunOptions(runs_dir=runs), display=display)
    if outcome.status != "finished":
        raise SystemExit(f"the Shoal arm failed: {outcome.error}")
    # step_s is the time from the end of one step to the end of the next on the slowest member.
    entries = effective(read(RunFolder(Path(outcome.folder)).ledger)[0])
    return speed([e["step_s"] for e in entries if e["kind"] == "commit" and e["step"] > WARM])


def run_plain(engine: str, workers: int, spec: Path) -> Speed:
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "plain.py"), engine]
    others = [
        subprocess.Popen([*command, str(r), str(workers), port, str(spec)], stdout=subprocess.DEVNULL)
        for r in range(1, workers)
    ]
    first = subprocess.run(
        [*command, "0", str(workers), port, str(spec)], stdout=subprocess.PIPE, text=True, check=True
    )
    for other in others:
        other.wait(60)
    return speed(json.loads(first.stdout.strip().splitlines()[-1])["step_s"])


def run_in_ray(engine: str, workers: int, spec: Path) -> Speed:
    """The plain loop in Ray tasks, on a cluster started as Shoal starts its own."""
    import ray

    from benchmarks.plain import train

    with connect(Local.of(job(engine, workers)), None):
        port, values = free_port(), SimpleNamespace(**json.loads(spec.read_text()))
        tasks = [ray.remote(num_cpus=1)(train).remote(engine, r, workers, port, values) for r in range(workers)]
        return speed(ray.get(tasks)[0]["step_s"])


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["ddp", "zero1", "zero2", "zero3"])
    parser.add_argument("--ray", action="store_true", help="also the plain loop in bare Ray tasks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, spec = Path(folder) / "runs", Path(folder) / "spec.json"
        data = resolve(job("ddp", 1).data, runs, ("tokens",)).train
        spec.write_text(
            json.dumps(
                {"steps": STEPS, "warm": WARM, "batch": BATCH, "task": TASK, "data": data.uri, "lr": 1e-3, "threads": 1}
            )
        )
        arms = {}
        for engine in options.engines:
            arms[f"plain {engine}"] = lambda e=engine: run_plain(e, options.workers, spec)
            if options.ray:
                arms[f"ray {engine}"] = lambda e=engine: run_in_ray(e, options.workers, spec)
            arms[f"shoal {engine}"] = lambda e=engine: run_shoal(e, options.workers, runs)
        found = interleave(arms, options.n, lambda name, x: print(f"{name}: {x.median:.1f} samples/s", flush=True))
    rows = []
    for e in options.engines:
        plain = found[f"plain {e}"]
        rows.append(f"| {e} | plain | {spread([x.median for x in plain], 1)} | | |")
        for arm in ("ray", "shoal"):
            if (theirs := found.get(f"{arm} {e}")) is not None:
                rows.append(
                    f"| {e} | {NAMES[arm]} | {spread([x.median for x in theirs], 1)} "
                    f"| {spread(ratios([x.median for x in theirs], [x.median for x in plain]))} "
                    f"| {spread(ratios([x.whole for x in theirs], [x.whole for x in plain]))} |"
                )
    write_result(
        f"overhead_{options.workers}_workers",
        f"# Fault-free overhead, {options.workers} workers\n\n{machine()}\n\n"
        f"GPT {TASK}, batch {BATCH} of {TASK['context'] + 1} bytes, steps {WARM + 1}-{STEPS} of {STEPS}, fp32, AdamW, "
        f"clipping; median (min-max, n).\n\n"
        "| engine | loop | samples/s | to plain, by median step | to plain, of the whole stretch |\n"
        "|---|---|---|---|---|\n" + "\n".join(rows) + "\n",
    )


if __name__ == "__main__":
    main()
