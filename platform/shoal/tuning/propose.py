"""Which point is tried next: a function of the sweep, the trial's number and what the trials before have come to.

Nothing is remembered between two proposals, so that a resumed or extended sweep proposes as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError
from shoal.tuning.space import Axis, Choice, Point, Range, grid, holds, point_of, random_point
from shoal.tuning.spec import TPE, Grid, Sweep
from shoal.tuning.trials import TrialRow

if TYPE_CHECKING:
    import optuna

_STATES = {"finished": "COMPLETE", "stopped-early": "PRUNED", "failed": "FAIL"}


def propose(sweep: Sweep, number: int, rows: Sequence[TrialRow]) -> Point | None:
    """The fields of trial `number`, given the trials so far; None: a grid that has no more points."""
    search, axes = sweep.search, sweep.axes
    tried = [row.fields for row in rows]
    asked = next((point for point in sweep.first if dict(point) not in tried), None)
    if asked is not None:
        return point_of(axes, lambda axis: asked[axis.name])
    if isinstance(search, Grid):
        return next((point for point in grid(axes) if point not in tried), None)
    if isinstance(search, TPE):
        return _parzen(sweep, search, number, rows)
    return random_point(axes, search.seed, number)


def cost_of(row: TrialRow, name: str) -> float | None:
    """What a trial used, or its last value of another metric; None: not known."""
    if name == "cost":
        return row.worker_seconds if row.dollars is None else row.dollars
    if row.last is None:
        return None
    return row.last.metrics.get(name) if "/" in name else getattr(row.last, name)


def need_optuna() -> Any:
    """The module. Raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("search=TPE needs Optuna: pip install 'shoal[tune]', or use Random()") from None
    return optuna


def _parzen(sweep: Sweep, search: TPE, number: int, rows: Sequence[TrialRow]) -> Point:
    optuna, axes = need_optuna(), sweep.axes
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = int.from_bytes(hashlib.sha256(f"{search.seed}:{number}".encode()).digest()[:4], "big")
    first = "minimize" if sweep.mode == "min" else "maximize"
    with warnings.catch_warnings():
        # Says that grouped multivariate sampling is experimental; it is what conditional parameters need.
        warnings.simplefilter("ignore")
        # `constant_liar`: points that are being tried count as bad, so that trials at the same time are not alike.
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=search.startup, multivariate=True, group=True, constant_liar=True
        )
        directions = [first, *["minimize"] * (len(sweep.objectives) - 1)]
        study = optuna.create_study(sampler=sampler, directions=directions)
        for row in rows:
            if holds(axes, row.fields):
                study.add_trial(_remembered(optuna, sweep, row))
        trial = study.ask()
        return point_of(axes, lambda axis: axis.domain.clip(_suggested(trial, axis)))


def _remembered(optuna: Any, sweep: Sweep, row: TrialRow) -> optuna.trial.FrozenTrial:
    axes = [axis for axis in sweep.axes if axis.exists_in(row.fields)]
    state, values = _STATES.get(row.status, "RUNNING"), None
    if state == "COMPLETE":
        values = [row.best, *(cost_of(row, name) for name in sweep.objectives[1:])]
        if any(v is None or not math.isfinite(v) for v in values):
            state, values = "FAIL", None
    several = bool(sweep.objectives)
    if state == "PRUNED" and (several or row.best is None):
        state = "FAIL"
    seen = {} if several else {p.step: p.value for p in row.curve if math.isfinite(p.value)}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        values=values,
        params={axis.key: row.fields[axis.name] for axis in axes},
        distributions={axis.key: _distribution(optuna, axis) for axis in axes},
        intermediate_values=seen,
    )


def _suggested(trial: optuna.Trial, axis: Axis) -> Any:
    domain, key = axis.domain, axis.key
    if isinstance(domain, Choice):
        return trial.suggest_categorical(key, domain.values)
    low: Any
    high: Any
    low, *_, high = domain.ends()  # of one kind with the domain
    if domain.whole:
        return trial.suggest_int(key, low, high, log=domain.log, step=int(domain.step or 1))
    return trial.suggest_float(key, low, high, log=domain.log, step=domain.step)


def _distribution(optuna: Any, axis: Axis) -> Any:
    kinds, domain = optuna.distributions, axis.domain
    if isinstance(domain, Choice):
        return kinds.CategoricalDistribution(domain.values)
    assert isinstance(domain, Range)
    low, high = domain.ends()[0], domain.ends()[-1]
    if domain.whole:
        return kinds.IntDistribution(low, high, log=domain.log, step=int(domain.step or 1))
    return kinds.FloatDistribution(low, high, log=domain.log, step=domain.step)
