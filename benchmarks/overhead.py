"""Fault-free overhead: Shoal against the same training written by hand with torch DDP and with DeepSpeed ZeRO 1, 2, 3.

Same model, data, batch, optimizer and number of workers; data loading included; arms interleaved. Samples per second of
the last steps, after warm-up. While a plain arm runs, no Ray cluster is up.

    python -m benchmarks.overhead [--n 5] [--workers 2] [--engines ddp zero1 zero2 zero3]
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import shoal
from benchmarks.common import interleave, machine, ratios, spread, write_result
from shoal.cli.display import make_display
from shoal.data.sources import resolve
from shoal.launch.api import RunOptions, run_job
from shoal.run_folder import RunFolder
from shoal.tasks import LanguageModel
from shoal.tracking.ledger import effective, read

ROOT = Path(__file__).resolve().parents[1]
STEPS, WARM, BATCH = 55, 15, 32
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


def run_shoal(engine: str, workers: int, runs: Path) -> float:
    with make_display(quiet=True) as display:
        outcome = run_job(job(engine, workers), options=RunOptions(runs_dir=runs), display=display)
    if outcome.status != "finished":
        raise SystemExit(f"the Shoal arm failed: {outcome.error}")
    # step_s is the time from the end of one step to the end of the next on the slowest member.
    entries = effective(read(RunFolder(Path(outcome.folder)).ledger)[0])
    taken = [e["step_s"] for e in entries if e["kind"] == "commit" and e["step"] > WARM]
    return len(taken) * BATCH / sum(taken)


def run_plain(engine: str, workers: int, spec: Path) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
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
    return float(json.loads(first.stdout.strip().splitlines()[-1])["samples_per_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["ddp", "zero1", "zero2", "zero3"])
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
            arms[f"shoal {engine}"] = lambda e=engine: run_shoal(e, options.workers, runs)
        found = interleave(arms, options.n, lambda name, x: print(f"{name}: {x:.1f} samples/s", flush=True))
    rows = [
        f"| {e} | {spread(found[f'plain {e}'], 1)} | {spread(found[f'shoal {e}'], 1)} "
        f"| {spread(ratios(found[f'shoal {e}'], found[f'plain {e}']))} |"
        for e in options.engines
    ]
    write_result(
        f"overhead_{options.workers}_workers",
        f"# Fault-free overhead, {options.workers} workers\n\n{machine()}\n\n"
        f"GPT {TASK}, batch {BATCH} of {TASK['context'] + 1} bytes, steps {WARM + 1}-{STEPS} of {STEPS}, fp32, AdamW, "
        f"clipping; median (min-max, n).\n\n"
        "| engine | plain samples/s | Shoal samples/s | ratio, pair by pair |\n|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n",
    )


if __name__ == "__main__":
    main()
