"""Two pictures: goodput by arm, and samples over the time of the trace."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.churn.figures import Event, ideal
from benchmarks.churn.schedule import Schedule

POINTS = 200


def draw_goodput(found: Mapping[str, Sequence[float]], path: Path) -> None:
    """Bars of the medians, with all values."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 0.4 * len(found) + 1))
    for row, (arm, values) in enumerate(found.items()):
        axes.barh(row, statistics.median(values), color="tab:blue" if arm.startswith("shoal") else "tab:gray")
        axes.plot(values, [row] * len(values), "k.", markersize=3)
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("goodput (workers that lose nothing: 1)")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def draw_progress(logs: Mapping[str, Sequence[Event]], speeds: Mapping[int, float], plan: Schedule, path: Path) -> None:
    """Above, how far each arm is at each moment; below, how many workers there could be."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 5), sharex=True, height_ratios=(4, 1))
    moments = [plan.length_s * i / POINTS for i in range(POINTS + 1)]
    for arm, log in logs.items():
        begin = next(e["t"] for e in log if e["kind"] == "ready")
        batch = next(e["batch"] for e in log if e["kind"] == "run")
        last = {e["step"]: e["t"] - begin for e in log if e["kind"] == "step"}
        done = [batch * sum(0 < t <= m for t in last.values()) for m in moments]
        above.plot(moments, done, label=arm, linestyle="-" if arm.startswith("shoal") else "--")
    first = next(iter(logs.values()))
    above.plot(moments, [ideal(first, speeds, m) for m in moments], "k:", label="nothing lost")
    above.set_ylabel("useful samples")
    above.legend(fontsize=7)
    sizes = plan.sizes()
    below.step([t for t, _ in sizes] + [plan.length_s], [n for _, n in sizes] + [sizes[-1][1]], where="post", color="k")
    below.set_ylim(0, 4.5)
    below.set_ylabel("workers")
    below.set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
