"""Run the churn benchmark, or a part of it, and make its page.

    python -m benchmarks.churn                                            the usual arms once, and the page
    python -m benchmarks.churn --arms shoal ray-train --traces p3 --n 2   two more runs of these, and the page of all
    python -m benchmarks.churn --page                                     only the page, of the logs that are kept

Every run leaves its log in the folder of `--raw`; the page is made of all that lie there, so a benchmark can be done in
several calls. Runs of other sizes (`--steps`, `--device-ms`) need another folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from benchmarks.churn.arms import PEERS, PLAIN, SHOAL
from benchmarks.churn.eventlog import read_log
from benchmarks.churn.loop import FINAL
from benchmarks.churn.one import WORKERS, spec_of
from benchmarks.churn.page import write_page
from benchmarks.churn.torchft_env import found
from benchmarks.churn.workload import Workload
from benchmarks.common import interleave

ROOT = Path(__file__).resolve().parents[2]
SPEED_STEPS = 60
"""Of a run that only shows a speed."""
EVERY = {"ray-train": 10, "torchrun": 5, "restart": 5}
"""Steps between two checkpoints: see the page."""
LIMIT_S = 240
MARK = "SHOAL_CHURN_RUN"
"""In the environment of all processes of a run: its folder."""
TRACES = ("calm", "p3", "one-by-one")
DEFAULT = ["ddp", "zero2", "shoal", "shoal-warm", "shoal-exact", "shoal-zero2", *PEERS]
"""What half an hour is enough for; the other stages are there by name."""


def combinations(arms: list[str], traces: list[str]) -> Iterator[tuple[str, str]]:
    """(arm, trace) of all runs of one round. Plain training only has calm ones, and all numbers of workers."""
    for trace, arm in itertools.product(traces, arms):
        if trace != "calm":
            if arm not in PLAIN:
                yield arm, trace
        elif arm in PLAIN:
            yield from ((arm, f"calm{n}") for n in range(1, WORKERS + 1))
        else:
            yield arm, f"calm{WORKERS}"


def run(arm: str, trace: str, workload: Workload, every: int, raw: Path) -> dict[str, object]:
    """One run in a process of its own; its log goes to `raw`. Returns what to say of it."""
    if trace.startswith("calm") and trace != f"calm{WORKERS}":
        workload = replace(workload, steps=SPEED_STEPS)
    elif trace == "one-by-one":
        workload = replace(workload, steps=10**6)
    raw.mkdir(parents=True, exist_ok=True)
    name = next(n for i in itertools.count() if not (raw / f"{(n := f'{arm}.{trace}.{i}')}.jsonl").exists())
    folder = Path(tempfile.mkdtemp(prefix="churn-"))
    spec = folder / "one.json"
    spec.write_text(json.dumps(spec_of(arm, trace, folder, raw, workload, every)))
    with (folder / "said.txt").open("w") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.churn.one", str(spec)],
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, MARK: str(folder)},
        )
        try:
            code = child.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_marked(folder)
    log = read_log(folder)
    stuck = [e["why"] for e in log if e["kind"] == "stuck"]
    if code != 0 or not any(e["kind"] == "over" for e in log):
        tail = (folder / "said.txt").read_text()[-2000:]
        return {"failed": tail or f"no end within {LIMIT_S} s", "kept": str(folder)}
    (raw / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log))
    with suppress(FileNotFoundError):
        shutil.move(folder / FINAL, raw / f"{name}.npy")
    shutil.rmtree(folder, ignore_errors=True)
    return {"steps": max((e["step"] for e in log if e["kind"] == "step"), default=0), "stuck": stuck}


def end_marked(folder: Path) -> None:
    """SIGKILL to whatever a run has left: agents, workers, Ray's own processes."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(folder):
                process.kill()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=[*PLAIN, *SHOAL, *PEERS], default=DEFAULT)
    parser.add_argument("--traces", nargs="+", choices=TRACES, default=list(TRACES))
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Workload.steps)
    parser.add_argument("--device-ms", type=float, default=Workload.device_ms)
    parser.add_argument("--every", type=int, help="steps between two checkpoints, of those who need them")
    parser.add_argument("--raw", type=Path, default=ROOT / "build" / "churn")
    parser.add_argument("--page", action="store_true", help="only make the page")
    parser.add_argument("--no-page", action="store_true", help="make no page: other calls follow")
    options = parser.parse_args()
    workload = Workload(steps=options.steps, device_ms=options.device_ms)
    arms = [a for a in options.arms if a != "torchft" or found()]
    if len(arms) < len(options.arms):
        print("torchft is left out: python -m benchmarks.churn.torchft_env makes its environment", flush=True)
    if not options.page:
        interleave(
            {
                f"{arm} {trace}": lambda a=arm, t=trace: run(
                    a, t, workload, options.every or EVERY.get(a, 0), options.raw.resolve()
                )
                for arm, trace in combinations(arms, options.traces)
            },
            options.n,
            lambda name, said: print(f"{name}: {said}", flush=True),
        )
    if not options.no_page:
        write_page(options.raw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
