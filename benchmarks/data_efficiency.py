"""Do curricula, short sequences and selection by loss save samples? Samples and seconds until a fixed validation loss.

On the default corpus; the same small language model, steps, optimizer and seeds, and only the data's order, its length
or which samples are trained on differs. Samples are those that are trained on; the arms that select also read and score
the ones that they leave out, which the seconds say. A run is evaluated every few steps; between two evaluations the
loss is taken for linear. Seconds are those of the training steps.

    python -m benchmarks.data_efficiency [--seeds 3] [--steps 400] [--target 1.9]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import shoal
from benchmarks.common import RESULTS, machine, write_result
from shoal.cli.display import PlainDisplay
from shoal.launch.api import RunOptions, run_job
from shoal.run_folder import RunFolder
from shoal.tasks import LanguageModel
from shoal.tracking.ledger import Entry, effective, read

BATCH, EVERY = 32, 20
TASK = {"context": 128, "layers": 3, "heads": 4, "width": 128}
ARMS: dict[str, dict] = {
    "plain shuffle": {},
    "curriculum (compressibility)": {"curriculum": shoal.Curriculum(start=0.3, until=0.4, pacing="root")},
    "sequence warm-up": {"length_warmup": shoal.LengthWarmup(start=32, until=0.3, multiple=16)},
    "importance": {"selection": shoal.Selection(rule="importance")},
    "hardest half": {"selection": shoal.Selection(rule="hardest")},
}


@dataclass(frozen=True)
class Curve:
    """Validation loss along a run: (samples trained on, seconds of training, loss), in order."""

    points: list[tuple[int, float, float]]

    def until(self, target: float) -> tuple[float, float] | None:
        """(samples, seconds) at which the loss came down to `target`; None: never."""
        for (n0, s0, l0), (n1, s1, l1) in zip(self.points, self.points[1:], strict=False):
            if l1 <= target < l0:
                part = (l0 - target) / (l0 - l1)
                return n0 + part * (n1 - n0), s0 + part * (s1 - s0)
        return None


def job(seed: int, steps: int, **data: object) -> shoal.Job:
    base = shoal.Data(train="builtin:stdlib", block=TASK["context"] + 1)
    return shoal.Job(
        name="data-efficiency",
        task=LanguageModel(**TASK),  # type: ignore[arg-type]
        data=replace(base, **data),  # type: ignore[arg-type]
        batch=shoal.Batch(size=BATCH, virtual_shards=8),
        budget=shoal.Budget(steps=steps),
        optimizer=shoal.Optimizer(lr=2e-3),
        workers=shoal.Workers(min=2, max=2),
        evaluation=shoal.Evaluation(every=EVERY, samples=256),
        checkpoints=shoal.Checkpoints(every=None, export=False),
        seed=seed,
    )


def curve(entries: list[Entry]) -> Curve:
    seconds, at, points = 0.0, {0: 0.0}, []
    for entry in entries:
        if entry["kind"] == "commit":
            seconds += entry["step_s"]
            at[entry["step"]] = seconds
    for entry in entries:
        if entry["kind"] == "evaluation":
            points.append((entry["step"] * BATCH, at[entry["step"]], entry["metrics"]["val/loss"]))
    return Curve(sorted(points))


def measure(seeds: int, steps: int) -> dict[str, list[Curve]]:
    """Every arm with every seed, the arms in turn."""
    found: dict[str, list[Curve]] = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as runs:
        for seed in range(seeds):
            for name, data in ARMS.items():
                outcome = run_job(
                    job(seed, steps, **data), options=RunOptions(runs_dir=Path(runs)), display=PlainDisplay(quiet=True)
                )
                if outcome.status != "finished":
                    raise SystemExit(f"{name} failed: {outcome.error}")
                found[name].append(curve(list(effective(read(RunFolder(Path(outcome.folder)).ledger)[0]))))
                print(f"{name}, seed {seed}: {found[name][-1].points[-1]}", flush=True)
    return found


def plot(found: dict[str, list[Curve]], target: float, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for name, curves in found.items():
        samples = [n for n, _, _ in curves[0].points[1:]]
        losses = [[loss for _, _, loss in c.points[1:]] for c in curves]
        (line,) = axes.plot(samples, [statistics.fmean(at) for at in zip(*losses, strict=True)], label=name)
        low, high = ([f(at) for at in zip(*losses, strict=True)] for f in (min, max))
        axes.fill_between(samples, low, high, alpha=0.15, color=line.get_color())
    axes.axhline(target, linewidth=0.8, linestyle=":", color="black")
    axes.set(xlabel="samples", ylabel="validation loss, nats per byte (mean and range over seeds)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def table(found: dict[str, list[Curve]], target: float) -> str:
    """Ratios are to the plain shuffle with the same seed: below 1 is better."""
    rows = [
        "| data | samples to the target | seconds | samples, ratio | seconds, ratio | final loss |",
        "|---|---|---|---|---|---|",
    ]
    plain = [c.until(target) for c in found["plain shuffle"]]
    for name, curves in found.items():
        reached = [c.until(target) for c in curves]
        final = _spread([c.points[-1][2] for c in curves], 3)
        both = [(r, p) for r, p in zip(reached, plain, strict=True) if r is not None and p is not None]
        if len(both) < len(curves):
            rows.append(
                f"| {name} | reached by {sum(r is not None for r in reached)} of {len(curves)} | | | | {final} |"
            )
            continue
        ratios = [_spread([r[i] / p[i] for r, p in both], 3) for i in (0, 1)]
        samples, seconds = _spread([r[0] for r, _ in both], 0), _spread([r[1] for r, _ in both], 1)
        rows.append(f"| {name} | {samples} | {seconds} | {ratios[0]} | {ratios[1]} | {final} |")
    return "\n".join(rows)


def _spread(values: list[float], digits: int) -> str:
    return f"{statistics.fmean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--target", type=float, default=1.9, help="validation loss in nats per byte")
    options = parser.parse_args()
    found = measure(options.seeds, options.steps)
    plot(found, options.target, RESULTS / "data_efficiency.png")
    what = f"GPT {TASK}, batch {BATCH}, {options.steps} steps, {options.seeds} seeds, fp32, 2 workers"
    title = f"# Samples and seconds to a validation loss of {options.target} nats per byte"
    shown = "![curves](data_efficiency.png)"
    write_result("data_efficiency", f"{title}\n\n{machine()}\n\n{what}\n\n{table(found, options.target)}\n\n{shown}\n")


if __name__ == "__main__":
    main()
