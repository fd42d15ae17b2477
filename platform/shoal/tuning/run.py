"""A sweep from its recipe to its end: checks, folder, cluster, trials, best job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.data.sources import resolve
from shoal.errors import ConfigError, Interrupted
from shoal.job import Job
from shoal.job.fields import flatten
from shoal.job.growth import grows_on_the_way
from shoal.job.recipe import shown
from shoal.job.steps import foreseen, positions_of, total_steps
from shoal.job.store import decides, job_digest
from shoal.launch.prepare import fresh_name
from shoal.launch.signals import StopRequests
from shoal.pool import PoolSpec, open_pool
from shoal.run_folder import RunFolder
from shoal.state.store import CheckpointStore
from shoal.tracking.settings import absolute_uri
from shoal.tuning.ledger import FILE, SweepLedger, sweep_folder
from shoal.tuning.meter import Meter, Used
from shoal.tuning.propose import need_optuna, propose
from shoal.tuning.recipe import SweepRecipe, write_best
from shoal.tuning.record import SweepRecord
from shoal.tuning.space import Point, check, holds
from shoal.tuning.spec import TPE, Population, Sweep, check_amounts
from shoal.tuning.sweeping import Sweeping
from shoal.tuning.trial import Base
from shoal.tuning.trials import SweepFacts, SweepState, TrialRow, read

if TYPE_CHECKING:
    from shoal.tuning.driving import SweepDisplay

_ALSO_COMPARED = ("evaluation.samples", "data.validation")
"""Fields of the job that change what the metric says, though not what is trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """Where a sweep runs, and under which name; nothing here changes what it finds."""

    runs_dir: Path = Path("runs")
    name: str | None = None
    resume: str | None = None
    """Name of the sweep to go on with."""
    address: str | None = None
    tracking_uri: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """A sweep that can begin."""

    sweep: Sweep
    base: Base
    longest: float | None
    """What a whole trial of the base job uses of the resource; None: not known before."""


def run_sweep(recipe: SweepRecipe, options: SweepOptions, display: SweepDisplay) -> SweepState:
    """Run the sweep to its end, or until the user stops it; returns how it stands then.

    Raises ConfigError, DataError or CapacityError for what is wrong before the first trial starts, and Interrupted if
    the user asked twice to stop.
    """
    checked = check_sweep(recipe, options)
    ledger = _open(recipe, checked, options)
    record = SweepRecord(ledger.folder, ledger.state.facts, tracking_uri=options.tracking_uri or "")
    checked = replace(checked, base=replace(checked.base, record=record.trial(-1)))
    record.start()
    try:
        sweeping = Sweeping(checked.sweep, checked.base.runs, ledger, lambda row: _used_before(checked.base, row))
        display.opened(ledger.state)
        _drive(sweeping, checked, options, display)
        state = sweeping.finish()
        if checked.base.keep_all:
            _prune(checked.base, state)
        if state.best is not None:
            write_best(recipe, state, state.best)
    finally:
        ledger.close()
        unsent = record.close(ledger.state.status)
    if unsent:
        display.event("warning", f"MLflow lacks {unsent} entries; send them later: shoal runs send {state.name}")
    display.closed(state)
    return state


def check_sweep(recipe: SweepRecipe, options: SweepOptions) -> Checked:
    """Everything that can be checked before anything starts. Raises ConfigError and DataError."""
    sweep, job, runs = recipe.sweep, recipe.job, options.runs_dir.absolute()
    absolute_uri(options.tracking_uri or "sqlite:///mlflow.db")
    if isinstance(sweep.search, TPE):
        need_optuna()
    check(sweep.axes, job)
    if job.workers.min > sweep.workers:
        raise ConfigError(
            f"workers={sweep.workers} of the sweep are fewer than one trial needs, job.workers.min={job.workers.min}; "
            f"raise workers, or lower job.workers.min"
        )
    at_once = min(sweep.at_once, sweep.workers // job.workers.min)
    sweep = replace(sweep, at_once=at_once)
    sources = resolve(job.data, runs, tuple(job.task.columns))
    if sources.validation is None:
        raise ConfigError(
            f"trials are compared by {sweep.metric}, but {job.name} has no validation data; set data.validation"
        )
    steps = foreseen(total_steps(job, sources.train.samples))
    known = steps is not None and not grows_on_the_way(job)
    samples = float(positions_of(job, steps).total) if steps is not None and known else None
    check_amounts(sweep, job, samples, steps)
    base = Base(
        job=job,
        recipe=recipe.base,
        metric=sweep.metric,
        runs=runs,
        cwd=str(Path.cwd()),
        tracking_uri=options.tracking_uri,
        keep_all=isinstance(sweep.search, Population),
        workers=_workers(sweep, job),
    )
    return Checked(sweep, base, {"samples": samples, "steps": steps}.get(sweep.resource))


def _workers(sweep: Sweep, job: Job) -> tuple[int, int]:
    """Fewest and most workers of one trial."""
    even = sweep.workers // sweep.at_once
    return (job.workers.min, sweep.workers) if sweep.elastic else (even, even)


def facts_of(recipe: SweepRecipe, checked: Checked) -> SweepFacts:
    """The sweep as its ledger has it."""
    sweep, job = checked.sweep, recipe.job
    return SweepFacts(
        job=job.name,
        recipe=shown(recipe.path),
        base=shown(recipe.base.path) if recipe.base is not None else "",
        base_digest=job_digest(job),
        base_fields=flatten(job),
        space=tuple(axis.facts() for axis in sweep.axes),
        metric=sweep.metric,
        mode=sweep.mode,
        search=repr(sweep.search),
        stop_early=repr(sweep.stop_early) if sweep.stop_early is not None else None,
        resource=sweep.resource,
        rungs=sweep.rungs(checked.longest),
        objectives=tuple(sweep.objectives),
        trials=sweep.total,
        at_once=sweep.at_once,
        workers=sweep.workers,
        budget=sweep.budget.given(),
        first=tuple(dict(point) for point in sweep.first),
    )


def planned(recipe: SweepRecipe, options: SweepOptions) -> tuple[list[Point], int]:
    """The points that would be tried, checked as before a start, and how many more depend on what these come to."""
    sweep = check_sweep(recipe, options).sweep
    rows: list[TrialRow] = []
    if options.resume is not None:
        rows = list(read(sweep_folder(options.runs_dir, options.resume) / FILE).rows)
    counted = sum(holds(sweep.axes, row.fields) for row in rows)
    random = sweep.search.startup if isinstance(sweep.search, TPE) else sweep.total
    points: list[Point] = []
    while counted < min(random, sweep.total):
        point = propose(sweep, len(rows), rows)
        if point is None:
            break
        points.append(point)
        rows.append(TrialRow(number=len(rows), name="", run_id="", fields=point))
        counted += 1
    return points, sweep.total - counted if isinstance(sweep.search, TPE) else 0


def _open(recipe: SweepRecipe, checked: Checked, options: SweepOptions) -> SweepLedger:
    """The ledger of a new sweep, or of the one that goes on; opened. Raises ConfigError."""
    runs, facts = checked.base.runs, facts_of(recipe, checked)
    name = options.resume or options.name or checked.sweep.name or fresh_name(recipe.path.stem)
    folder = sweep_folder(runs, name)
    exists = (folder / FILE).exists()
    if options.resume is not None and not exists:
        known = sorted(p.parent.name for p in folder.parent.glob(f"*/{FILE}"))
        raise ConfigError(f"there is no sweep {name} in {folder.parent}; there are: {', '.join(known) or 'none'}")
    if options.resume is None and exists:
        raise ConfigError(
            f"a sweep named {name} exists already; choose another --name, or go on with it: --resume {name}"
        )
    ledger = SweepLedger(folder)
    try:
        if not ledger.is_new:
            _comparable(ledger.state.facts, facts, name)
        ledger.opened(name, facts)
    except BaseException:
        ledger.close()
        raise
    return ledger


def _comparable(old: SweepFacts, new: SweepFacts, name: str) -> None:
    """Raise ConfigError if results of then and of now cannot be compared; the message says what differs."""
    searched = {axis["name"] for axis in (*old.space, *new.space)}

    def deciding(facts: SweepFacts) -> dict[str, str]:
        return {
            field: text
            for field, text in facts.base_fields.items()
            if (decides(field, text) or field in _ALSO_COMPARED)
            and not any(field == s or field.startswith(f"{s}.") for s in searched)
        }

    changed = _differences(deciding(old), deciding(new))
    plain = ("metric", "mode", "objectives", "resource")
    changed += _differences({n: getattr(old, n) for n in plain}, {n: getattr(new, n) for n in plain})
    if changed:
        raise ConfigError(
            f"trials of sweep {name} could not be compared with new ones, because these have changed: "
            f"{', '.join(changed)}; change them back, or start a new sweep"
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} ({old.get(name, 'none')} -> {new.get(name, 'none')})" for name in names]


def _used_before(base: Base, row: TrialRow) -> Used:
    """What the runs have used that a trial had before its present one."""
    used = Used()
    for run in row.runs[:-1]:
        meter = Meter(base.runs / run / "ledger.jsonl", base.metric, before=used)
        meter.look()
        used = meter.used
    return used


def _pool_of(checked: Checked) -> PoolSpec:
    """The workers of all trials together. Its name is nobody else's, not even an earlier part's of this sweep."""
    job, at_once = checked.base.job, checked.sweep.at_once
    return PoolSpec(
        workers=checked.sweep.workers,
        cpus=job.workers.cpus,
        gpus=job.workers.gpus,
        resources=job.workers.resources,
        numerics=job.numerics,
        sharded=job.engine.name != "replicated",
        runs=at_once,
        reading_cpus=at_once * job.data.cpus,
        start_s=job.workers.start_s,
        name=fresh_name("sweep"),
    )


def _prune(base: Base, state: SweepState) -> None:
    """Delete the checkpoints that only others of the population needed."""
    for folder in (RunFolder(base.runs / run) for row in state.rows for run in row.runs):
        if (folder.path / "run.json").exists():
            CheckpointStore(folder.read()["checkpoint_uri"]).prune(base.job.checkpoints)


def _drive(sweeping: Sweeping, checked: Checked, options: SweepOptions, display: SweepDisplay) -> None:
    if not sweeping.left:
        return
    display.event("info", "connecting to Ray")
    # Inside the connection, because Ray's own handlers come with it and would end this process at the first signal.
    with open_pool(_pool_of(checked), address=options.address) as pool, StopRequests() as stop:
        from shoal.tuning.driving import drive

        try:
            drive(sweeping, replace(checked.base, pool=pool.name), pool.connection, display, stop)
        except Interrupted:
            sweeping.close("stopped at once by the user", by_user=True)
            sweeping.finish()
            raise
