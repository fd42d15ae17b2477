"""A sweep with elastic trials, with fixed ones, and as plain Ray Tune around a `TorchTrainer`: time and result.

The same eight learning rates in the same order, model, data, batch, steps, evaluations, ASHA, number of workers and of
trials at once. From the call to its return: starting the cluster and its processes is in it, and of Shoal also its
checkpoints at the end of each trial and its record in MLflow. Who is stopped early depends on who comes first, so the
samples that were trained on are told beside the seconds.

    python -m benchmarks.sweep [--n 3] [--workers 4] [--at-once 4] [--steps 240]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import shoal
from benchmarks.common import interleave, machine, ratios, spread, write_result
from benchmarks.tuned import POLL_S, Spec, run_tuned
from shoal.data.sources import resolve
from shoal.run_folder import RunFolder
from shoal.tasks import LanguageModel
from shoal.tracking.ledger import read
from shoal.tuning import ASHA, Grid, Sweep, choice
from shoal.tuning.ledger import FILE
from shoal.tuning.recipe import SweepRecipe
from shoal.tuning.run import SweepOptions, run_sweep
from shoal.tuning.trials import SweepState

TASK = {"context": 64, "layers": 2, "heads": 4, "width": 96}
BATCH, EVERY, EVALUATED, CLIP = 32, 20, 256, 1.0
RATES = [3e-4, 1e-2, 3e-2, 1e-3, 5e-3, 1e-4, 3e-3, 2e-2]
REDUCTION = 3.0
SCHEDULE = shoal.Cosine(warmup=0.1, final=0.05)


@dataclass(frozen=True)
class Swept:
    """What one sweep came to."""

    seconds: float
    best: float
    samples: int
    stopped_early: int
    starts_s: list[float]
    """From asking for a trial to its first step; where there is a pool, without the trials that had to wait for it."""


@dataclass(frozen=True)
class Plan:
    """The same for all arms."""

    workers: int
    at_once: int
    steps: int

    @property
    def grace(self) -> int:
        """Samples that every trial gets."""
        return BATCH * EVERY * max(1, self.steps // EVERY // 6)

    def job(self) -> shoal.Job:
        return shoal.Job(
            name="sweep-benchmark",
            task=LanguageModel(**TASK),
            data=shoal.Data(train="builtin:stdlib", block=TASK["context"] + 1),
            batch=shoal.Batch(size=BATCH, virtual_shards=8),
            optimizer=shoal.Optimizer(name="adamw", clip_norm=CLIP),
            schedule=SCHEDULE,
            budget=shoal.Budget(steps=self.steps),
            workers=shoal.Workers(min=1, max=self.workers),
            evaluation=shoal.Evaluation(every=EVERY, samples=EVALUATED),
            checkpoints=shoal.Checkpoints(every=None, export=False),
        )

    def sweep(self, *, elastic: bool) -> Sweep:
        return Sweep(
            job=self.job(),
            space={"optimizer.lr": choice(*RATES)},
            search=Grid(),
            stop_early=ASHA(grace=self.grace, reduction=REDUCTION),
            at_once=self.at_once,
            workers=self.workers,
            elastic=elastic,
        )


class Silent:
    """A display that shows nothing but what goes wrong."""

    def opened(self, state: SweepState) -> None:
        pass

    update = closed = opened

    def event(self, kind: str, text: str) -> None:
        if kind == "warning":
            print(text, flush=True)


def run_shoal(plan: Plan, runs: Path, *, elastic: bool) -> Swept:
    """One sweep by Shoal."""
    recipe = SweepRecipe(
        sweep=plan.sweep(elastic=elastic), path=runs / "recipe.py", name="sweep", sources=(), base=None, asked=()
    )
    recipe.path.write_text("import shoal\n")
    begun = time.perf_counter()
    state = run_sweep(recipe, SweepOptions(runs_dir=runs), Silent())
    seconds = time.perf_counter() - begun
    bad = [row for row in state.rows if row.status not in ("finished", "stopped-early")]
    if bad or state.best is None or state.best.best is None or len(state.rows) != len(RATES):
        raise SystemExit(f"the sweep {state.name} did not go well: {state.reason}; {[(r.name, r.reason) for r in bad]}")
    return Swept(
        seconds=seconds,
        best=state.best.best,
        samples=sum(row.samples for row in state.rows),
        stopped_early=state.counts["stopped-early"],
        starts_s=starts_of(state)[plan.at_once :],
    )


def starts_of(state: SweepState) -> list[float]:
    """Seconds from each trial's suggestion to its run's first step, from the ledgers of the sweep and of the runs."""
    asked = {e["trial"]: e["time"] for e in read(Path(state.folder) / FILE)[0] if e["kind"] == "suggested"}
    found = []
    for row in state.rows:
        first = next(e for e in read(RunFolder(Path(row.folder)).ledger)[0] if e["kind"] == "commit")
        found.append(first["time"] - first["step_s"] - asked[row.number])
    return found


def run_plain(plan: Plan, data: tuple[str, str], folder: Path) -> Swept:
    """One sweep by Ray Tune and Ray Train."""
    spec = Spec(
        task=TASK, train=data[0], validation=data[1], batch=BATCH, steps=plan.steps, every=EVERY, evaluated=EVALUATED,
        schedule=SCHEDULE, clip_norm=CLIP,
    )  # fmt: skip
    begun = time.perf_counter()
    found = run_tuned(
        spec, RATES, workers=plan.workers, at_once=plan.at_once, grace=plan.grace, reduction=REDUCTION, folder=folder
    )
    return Swept(time.perf_counter() - begun, found.best, found.samples, found.stopped_early, found.starts_s)


def table(found: dict[str, list[Swept]]) -> str:
    """One line for each arm."""
    base = [x.seconds for x in next(iter(found.values()))]
    lines = [
        "| trials | wall-clock, s | to fixed trials | best loss | samples | stopped early | start of a trial, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, swept in found.items():
        seconds = [x.seconds for x in swept]
        starts = [s for x in swept for s in x.starts_s]
        lines.append(
            f"| {name} | {spread(seconds, 1)} | {spread(ratios(seconds, base), 2)} "
            f"| {spread([x.best for x in swept])} | {statistics.median(x.samples for x in swept):.0f} "
            f"| {statistics.median(x.stopped_early for x in swept):g} of {len(RATES)} | {spread(starts, 2)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4, help="of all trials together")
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--steps", type=int, default=240, help="of a whole trial")
    options = parser.parse_args()
    plan = Plan(options.workers, options.at_once, options.steps)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        sources = resolve(plan.job().data, runs, ("tokens",))
        assert sources.validation is not None, "the built-in corpus has a part that is held out"
        data, rounds = (sources.train.uri, sources.validation.uri), iter(range(1_000))
        arms: dict[str, Callable[[], Swept]] = {
            "Shoal, fixed": lambda: run_shoal(plan, runs, elastic=False),
            "Shoal, elastic": lambda: run_shoal(plan, runs, elastic=True),
            "Ray Tune, `TorchTrainer`": lambda: run_plain(plan, data, Path(folder) / f"tune-{next(rounds)}"),
        }
        found = interleave(arms, options.n, lambda name, x: print(f"{name}: {x}", flush=True))
    write_result(
        "sweep",
        f"# A sweep of {len(RATES)} trials\n\n{machine()}\n\n"
        f"GPT {TASK}, learning rates {RATES}, batch {BATCH} of {TASK['context'] + 1} bytes, {plan.steps} steps, an "
        f"evaluation on {EVALUATED} samples every {EVERY}, ASHA from {plan.grace} samples on with reduction "
        f"{REDUCTION:g}; {plan.workers} workers of one thread, {plan.at_once} trials at once; median (min-max, n). "
        f"Ray Train's controller polls every {POLL_S:g} s (2 by default), its trials write no checkpoints.\n\n"
        + table(found),
    )


if __name__ == "__main__":
    main()
