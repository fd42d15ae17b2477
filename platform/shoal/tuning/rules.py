"""Which trials go on: Ray Tune's schedulers, told of nothing but evaluations, in the resource that the sweep counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from shoal.tuning.orders import Evaluated
from shoal.tuning.space import Choice
from shoal.tuning.spec import ASHA, HyperBand, Median, Population, Sweep
from shoal.tuning.sweeping import Sweeping
from shoal.tuning.trainable import SAID, to_config
from shoal.tuning.trials import Point, TrialRow

AMOUNT, VALUE = "amount", "value"
"""Keys of what a scheduler is told: how much of the resource was used, and the metric."""
AWFUL = 1e30
"""In the place of a value that is not finite, for schedulers that sort."""
RUNGS = 20


def scheduler_of(sweep: Sweep) -> TrialScheduler:
    """Ray Tune's scheduler for the sweep's rule."""
    rule, search = sweep.stop_early, sweep.search
    # Tune's annotations say that amounts are whole numbers; its code takes any.
    common: dict[str, Any] = {"time_attr": AMOUNT, "metric": VALUE, "mode": sweep.mode}
    if isinstance(rule, (ASHA, HyperBand)):
        # `max_t` only bounds the number of rungs: it is the budget that ends a trial.
        common |= {"max_t": rule.grace * min(rule.reduction**RUNGS, 1e200), "grace_period": rule.grace}
        common |= {"brackets": rule.brackets if isinstance(rule, HyperBand) else 1}
        return AsyncHyperBandScheduler(**common, reduction_factor=rule.reduction, stop_last_trials=False)
    if isinstance(rule, Median):
        # An endless time slice: a trial is stopped or goes on, but never pauses for another one.
        common |= {"grace_period": rule.grace, "min_time_slice": math.inf}
        return MedianStoppingRule(**common, min_samples_required=rule.at_least)
    return _population(sweep, search, common) if isinstance(search, Population) else FIFOScheduler()


def _population(sweep: Sweep, search: Population, common: dict[str, Any]) -> TrialScheduler:
    domains = {axis.name: axis.domain for axis in sweep.axes}
    mutations = {
        name: list(d.values) if isinstance(d, Choice)
        else tune.loguniform(d.low, d.high) if d.log
        else tune.uniform(d.low, d.high)
        for name, d in domains.items()
    }  # fmt: skip

    def clipped(config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "fields": {name: domains[name].clip(v) for name, v in config["fields"].items()}}

    common |= {"perturbation_interval": search.every, "hyperparam_mutations": {"fields": mutations}}
    return PopulationBasedTraining(
        **common,
        quantile_fraction=search.quantile,
        resample_probability=search.resample,
        custom_explore_fn=clipped,
        log_config=False,
    )


def told(sweep: Sweep, point: Point) -> dict[str, float]:
    """What a scheduler hears of an evaluation."""
    bad = AWFUL if sweep.mode == "min" else -AWFUL
    value = point.value if math.isfinite(point.value) else bad
    return {AMOUNT: point.resource(sweep.resource) or 0.0, VALUE: value, "training_iteration": point.step}


class Rule(TrialScheduler):
    """Stands before Tune's scheduler: passes evaluations on, remembers those of earlier days, and ends the runs of
    trials that are to stop."""

    _supports_buffered_results = False

    def __init__(self, sweeping: Sweeping, end: Callable[[str, str], None]) -> None:
        """`end` (run id, reason): end that run soon, without a checkpoint."""
        super().__init__()
        self._end = end
        self._sweeping, self._sweep = sweeping, sweeping.sweep
        self._inner = scheduler_of(self._sweep)
        self._judged: set[str] = set()
        for row in sweeping.state.rows if self._sweep.stop_early is not None else ():
            if row.status in ("finished", "stopped-early"):
                self._add(_Past(row.number), row)

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._add(trial, self._row(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        said, number = result[SAID], trial.config["number"]
        self._sweeping.heard(number, said)
        if not isinstance(said, Evaluated):
            return TrialScheduler.CONTINUE
        row = self._row(trial)
        if self._sweep.stop_early is not None and not math.isfinite(said.point.value):
            self._stop(row, f"{self._sweep.metric} is {said.point.value}")
            return TrialScheduler.CONTINUE
        before = dict(trial.config)
        decision = self._tell(tune_controller, trial, said.point)
        if trial.config.get("number") != number or trial.config["fields"] != before["fields"]:
            self._fork(trial, number)
        elif decision == TrialScheduler.STOP and row.fields not in self._sweeping.state.facts.first:
            self._stop(row, self._why(row, said.point))
        elif (reason := self._sweeping.why(number)) is not None:
            self._stop(row, reason)  # again: a word may be lost where a coordinator is started again
        # It is the run that ends, and its trial with it. A population's trial would give way to one that is just being
        # forked, but there is room for all.
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        last = self._row(trial).last
        if last is None:
            self._inner.on_trial_error(tune_controller, trial)
        else:
            self._inner.on_trial_complete(tune_controller, trial, told(self._sweep, last))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._inner.on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self._inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return self._inner.debug_string()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its ledger")

    def _row(self, trial: Any) -> TrialRow:
        return self._sweeping.state.rows[trial.config["number"]]

    def _tell(self, tune_controller: Any, trial: Any, point: Point) -> str:
        if isinstance(self._sweep.stop_early, Median) and trial.trial_id in self._judged:
            return TrialScheduler.CONTINUE  # Tune's median rule takes no word of a trial that it has stopped
        decision: str = self._inner.on_trial_result(tune_controller, trial, told(self._sweep, point))
        if decision == TrialScheduler.STOP:
            self._judged.add(trial.trial_id)
        return decision

    def _stop(self, row: TrialRow, reason: str) -> None:
        self._sweeping.will_stop(row.number, reason)
        self._end(row.run_id, f"stopped early by its sweep: {reason}")

    def _fork(self, trial: Any, number: int) -> None:
        """Tune gave this trial the other one's whole configuration; it keeps its name, and gets a run of its own."""
        old = self._sweeping.state.rows[number].run_id
        order = self._sweeping.forked(number, trial.config["number"], dict(trial.config["fields"]))
        trial.set_config(to_config(order))
        self._end(old, f"its sweep goes on from the checkpoint of {order.fork_from}")

    def _add(self, trial: Any, row: TrialRow) -> None:
        """Tell the scheduler of a trial, and of what it did on earlier days."""
        if isinstance(self._sweep.stop_early, HyperBand):
            np.random.seed(row.number)  # the scheduler draws the bracket: the same one for a trial after a resume
        self._inner.on_trial_add(_NOBODY, trial)  # PBT refuses a controller that has a searcher; ours goes with it
        for point in row.curve if self._sweep.stop_early is not None else ():
            if math.isfinite(point.value) and point.resource(self._sweep.resource) is not None:
                self._tell(_NOBODY, trial, point)

    def _why(self, row: TrialRow, point: Point) -> str:
        sweep, rule = self._sweep, self._sweep.stop_early
        used = point.resource(sweep.resource) or 0.0
        said = f"{sweep.metric} {point.value:.4g} after {used:g} {sweep.resource}"
        if isinstance(rule, (ASHA, HyperBand)):
            rung = rule.grace * rule.reduction ** math.floor(math.log(used / rule.grace, rule.reduction) + 1e-9)
            return f"{said}: not among the best 1/{rule.reduction:g} at {rung:g}"
        return f"{said}: worse than the median of the others"


class _Past:
    """A trial of an earlier day, as schedulers know trials: by identity and by id."""

    def __init__(self, number: int) -> None:
        self.trial_id = f"earlier-{number}"


class _Nobody:
    """The controller of trials that do not run any more."""

    search_alg = None

    def get_live_trials(self) -> list[Any]:
        return []


_NOBODY: Any = _Nobody()
