"""Numbers, durations and outcomes as short text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.coordinator.status import Outcome, RunStatus
from shoal.tracking.expenses import split

HEADLINES = ("val/loss", "val/bits_per_byte", "val/accuracy")
"""Evaluation metrics that are shown first where there is room for few."""


def duration(seconds: float) -> str:
    """`41s`, `2:05`, `3:20:00`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def age(seconds: float) -> str:
    """In the largest unit that fits: `41s`, `12m`, `3h`, `5d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


def amount(value: float) -> str:
    """Three digits and a unit: `0.25`, `870`, `111k`, `2.4M`."""
    if not math.isfinite(value):
        return str(value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{_digits(value / size)}{unit}"
    return _digits(value)


def energy(joules: float) -> str:
    """`870 J`, `1.2 MJ`."""
    shown = amount(joules)
    return f"{shown[:-1]} {shown[-1]}J" if shown[-1] in "kMG" else f"{shown} J"


def dollars(value: float) -> str:
    """`$0.0031`, `$1.24`, `$1240.50`: to the cent, or three digits of less than that."""
    return f"${value:.2f}" if value >= 1 else f"${_digits(value)}"


def cost(said: Mapping[str, Any]) -> str:
    """`1.2 MJ (nvml, 12% wasted), 158 g CO2e, $1.24 (9% wasted)`: the `cost` that a run's end says; empty: none."""
    parts = []
    for unit, show in (("joules", energy), ("dollars", dollars)):
        if by_phase := said.get(unit):
            useful, wasted = split(by_phase)
            source = f"{', '.join(said['sources'])}, " if unit == "joules" else ""
            parts.append(f"{show(useful + wasted)} ({source}{wasted / (useful + wasted):.0%} wasted)")
    if len(parts) and said.get("joules"):
        parts.insert(1, f"{amount(said['co2_g'])} g CO2e")
    return ", ".join(parts)


def size(count: float) -> str:
    """Bytes in binary units: `512 MiB`, `1.5 GiB`."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if count >= 1 << power:
            return f"{_digits(count / (1 << power))} {unit}"
    return f"{count / 1024:.0f} KiB"


def numbers(status: RunStatus) -> str:
    """`loss 1.903 · 870 samples/s · 111k tokens/s · 2/4 workers · val/loss 1.95`: what is known of it."""
    parts = []
    if status.loss is not None:
        parts.append(f"loss {status.loss:.4g}")
    if status.samples_per_s is not None:
        parts.append(f"{amount(status.samples_per_s)} samples/s")
    if status.tokens_per_s is not None:
        parts.append(f"{amount(status.tokens_per_s)} tokens/s")
    wanted = f"/{status.wanted}" if status.wanted and status.wanted != status.workers else ""
    parts.append(f"{status.workers}{wanted} worker{'' if status.workers == 1 and not wanted else 's'}")
    parts += metrics(status.evaluation)[:2]
    return " · ".join(parts)


def metrics(values: Mapping[str, float]) -> list[str]:
    """`val/loss 1.903` and so on, the headlines first."""
    names = [n for n in HEADLINES if n in values] + [n for n in values if n not in HEADLINES]
    return [f"{name} {values[name]:.4g}" for name in names]


def steps(status: RunStatus) -> str:
    """`step 120/300`."""
    return f"step {status.step}/{status.total_steps}" if status.total_steps else f"step {status.step}"


def closing(outcome: Outcome, seconds: float) -> list[str]:
    """The lines that a run leaves on the screen."""
    lines = [f"{outcome.status} after {outcome.step} steps in {duration(seconds)}"]
    if outcome.metrics:
        lines.append("  result      " + " · ".join(metrics(outcome.metrics)))
    if spent := cost(outcome.cost):
        lines.append(f"  cost        {spent}")
    if outcome.model:
        lines.append(f"  model       {outcome.model}")
    if outcome.checkpoint:
        lines.append(f"  checkpoint  {outcome.checkpoint}")
    lines.append(f"  run         {outcome.folder}")
    report = Path(outcome.folder, "report.html")
    if report.exists():
        lines.append(f"  report      {report.absolute().as_uri()}")
    if outcome.record:
        lines.append(f"  record      {outcome.record}")
    if outcome.status != "finished" and outcome.checkpoint:
        lines.append(f"  go on with  shoal resume {outcome.run_id}")
    return lines


def _digits(value: float) -> str:
    return f"{value:.3g}"
