"""`shoal schedule`."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.jobs import find_job
from shoal.cli.options import runs_option, set_option
from shoal.errors import ConfigError

if TYPE_CHECKING:
    from shoal.cli.charts import Axes
    from shoal.job import Job
    from shoal.job.schedules import Schedule

_POINTS = 1000
"""Of a curve in a file; its mean is taken over them, too."""
_TOLD = 100
"""Points of a curve in JSON."""


@click.command(short_help="Show learning-rate schedules; nothing is trained.")
@click.argument("job")
@set_option
@click.option(
    "-c",
    "--compare",
    "others",
    multiple=True,
    metavar="SCHEDULE",
    help="Another one beside the job's own, for example Rex or 'OneCycle(warmup=0.2), Linear'. May be repeated.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.svg",
    help="Write all curves into a picture.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@runs_option
def schedule(
    *, job: str, overrides: tuple[str, ...], others: tuple[str, ...], out: Path | None, as_json: bool, runs_dir: Path
) -> None:
    """The learning rate of JOB over its budget. JOB is a recipe, or a run (its id or folder).

    A schedule is a function of progress, the fraction of the budget that is used; so neither data nor workers are
    asked. Its family is a value of the job:

    \b
    Constant  Linear  Cosine  Polynomial  Step  Exponential  InverseSqrt  Triangular  Triangular2
    OneCycle  WarmRestarts  Rex  WarmupStableDecay  RangeTest, and of several: Piecewise  Scaled

    Each has a warm-up and values of its own (docs/schedules.md).

    \b
    shoal schedule jobs/gpt.py
    shoal schedule jobs/gpt.py --set schedule.warmup=0.2 --set optimizer.lr=1e-3
    shoal schedule jobs/gpt.py --set 'schedule=WarmupStableDecay(decay=0.3)' --set budget.steps=1000
    shoal schedule jobs/gpt.py --compare Rex --compare 'OneCycle(warmup=0.2)' --out curves.svg
    shoal schedule jobs/gpt.py --set 'schedule=Piecewise(pieces=((0.3, Constant), (0.7, Cosine)))'
    shoal schedule jobs/gpt.py --json | jq .schedules[0].last
    """
    from shoal.cli.charts import Line, svg
    from shoal.job.schedules import Schedule
    from shoal.job.text_values import parse

    wanted, length = _find(job, overrides, runs_dir.absolute())
    schedules = [wanted.schedule]
    for text in others:
        schedules += parse(text, tuple[Schedule, ...], "--compare")
    curves = [Curve(schedule=s, job=wanted, length=length) for s in schedules]
    if out is not None:
        if out.suffix != ".svg":
            raise ConfigError(f"--out {out} must end in .svg: a picture that every browser opens")
        lines = [Line(name=repr(c.schedule), values=c.rates(_POINTS)) for c in curves]
        _write(out, svg(lines, length.axes(curves[0].peak), title=_title(wanted, length, curves[0].peak)))
    for line in [json.dumps(_as_json(wanted, curves))] if as_json else _lines(wanted, curves):
        click.echo(line)
    if out is not None and not as_json:
        click.echo(f"written to {out}")


@dataclass(frozen=True, slots=True)
class Length:
    """How long a budget is: in steps, or, where only the data would tell them, in another unit."""

    amount: float
    unit: str

    @property
    def steps(self) -> int | None:
        return int(self.amount) if self.unit == "steps" else None

    def place(self, progress: float) -> str:
        """`step 30`, or `epoch 1.5`: where that much of the budget is used for the first time."""
        step = self.step(progress)
        return f"epoch {self.amount * progress:.3g}" if step is None else f"step {step}"

    def step(self, progress: float) -> int | None:
        return None if self.steps is None else max(1, math.ceil(progress * self.steps - 1e-9))

    def axes(self, peak: float) -> Axes:
        from shoal.cli.charts import Axes

        return Axes(x=self.amount, x_unit=self.unit, y=peak)


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One schedule over the job's budget."""

    schedule: Schedule
    job: Job
    length: Length

    @property
    def peak(self) -> float:
        """Where the schedule's factor is 1, and the batch the one with the highest rate."""
        from shoal.optim.batch_rules import planned_size, rate_scale

        points = [p for p, _ in getattr(self.job.batch.growth, "at", ())]
        sizes = [planned_size(self.job, p) for p in (*points, 1.0)]
        return self.job.optimizer.lr * max(rate_scale(self.job, size) for size in sizes)

    def rate(self, progress: float) -> float:
        from shoal.optim.batch_rules import planned_size, rate_scale
        from shoal.optim.schedules import learning_rate

        rate = learning_rate(self.job.optimizer.lr, self.schedule, progress)
        return rate * rate_scale(self.job, planned_size(self.job, progress))

    def rates(self, parts: int) -> list[float]:
        return [self.rate(i / parts) for i in range(parts + 1)]

    def mean(self) -> float:
        return math.fsum(self.rate((i + 0.5) / _POINTS) for i in range(_POINTS)) / _POINTS

    def places(self) -> dict[str, float]:
        """What is told -> its progress."""
        steps, warmup = self.length.steps, _warmup(self.schedule)
        first = {"first": 1 / steps} if steps else {}
        return first | ({"warmup_end": warmup} if warmup else {}) | {"middle": 0.5, "last": 1.0}


def _warmup(schedule: Schedule) -> float:
    """Progress at the end of the first warm-up."""
    from shoal.job.schedules import Piecewise, Scaled

    if isinstance(schedule, Piecewise):
        share, piece = schedule.pieces[0]
        return share * _warmup(piece)
    return _warmup(schedule.of) if isinstance(schedule, Scaled) else schedule.warmup


def _find(name: str, overrides: Sequence[str], root: Path) -> tuple[Job, Length]:
    job, folder = find_job(name, overrides, root)
    steps = folder.read().get("total_steps") if folder is not None and not overrides else None
    return job, Length(steps, "steps") if steps else _length(job)


def _length(job: Job) -> Length:
    from shoal.job.steps import total_steps

    if job.budget.epochs is not None:
        return Length(job.budget.epochs, "epochs")
    if (unit := job.budget.spent) is not None:
        return Length(getattr(job.budget, unit), unit)
    return Length(total_steps(job, 0), "steps")


def _title(job: Job, length: Length, peak: float) -> str:
    return f"{job.name}: {length.amount:g} {length.unit}, peak rate {peak:g}"


def _batches(job: Job, length: Length) -> str:
    """How the batch grows, and the rate with it; "" if neither does anything."""
    from shoal.job.growth import Milestones
    from shoal.optim.batch_rules import planned_rates, rule_of

    growth, scales = job.batch.growth, dict(planned_rates(job))
    if growth is None and set(scales.values()) == {1.0}:
        return ""
    first = f"batch {job.batch.size} (rate x {scales[job.batch.size]:.4g})"
    rule = f"; rule {rule_of(job)}, optimizer.lr is for {job.batch.lr_base or job.batch.size}"
    if isinstance(growth, Milestones):
        first += "".join(f", after {length.place(p)} {size} (x {scales[size]:.4g})" for p, size in growth.at)
    elif growth is not None:
        first += f", as the noise scale grows up to {job.batch.sizes[-1]} (x {scales[job.batch.sizes[-1]]:.4g})"
    return first + rule


def _lines(job: Job, curves: Sequence[Curve]) -> Iterator[str]:
    from shoal.cli.charts import blocks

    length = curves[0].length
    columns = min(max(shutil.get_terminal_size().columns - 12, 30), 100)
    yield _title(job, length, curves[0].peak)
    if batches := _batches(job, length):
        yield batches
    for curve in curves:
        yield ""
        yield repr(curve.schedule)
        values = [curve.rate((i + 1) / columns) for i in range(columns)]
        yield from blocks(values, length.axes(curve.peak), rows=10 if len(curves) == 1 else 6)
        names = {"first": "first", "warmup_end": "warm-up ends", "middle": "middle", "last": "last"}
        for what, progress in curve.places().items():
            yield f"  {names[what]:<13} {length.place(progress):<13} {curve.rate(progress):.4g}"
        yield f"  {'mean':<27} {curve.mean():.4g}, {curve.mean() / curve.peak:.0%} of the peak"


def _as_json(job: Job, curves: Sequence[Curve]) -> dict[str, Any]:
    from shoal.optim.batch_rules import planned_rates

    length = curves[0].length
    return {
        "job": job.name,
        "peak": curves[0].peak,
        "batches": [{"size": size, "rate_scale": scale} for size, scale in planned_rates(job)],
        "total_steps": length.steps,
        length.unit: length.amount,
        "schedules": [
            {
                "schedule": repr(c.schedule),
                **{
                    what: {"progress": progress, "step": length.step(progress), "rate": c.rate(progress)}
                    for what, progress in c.places().items()
                },
                "mean": c.mean(),
                "rates": c.rates(_TOLD),
            }
            for c in curves
        ],
    }


def _write(path: Path, content: str) -> None:
    try:
        path.write_text(content)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror}; choose another place") from error
