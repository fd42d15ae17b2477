"""What a sweep is, as one frozen value that a sweep recipe defines. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from shoal.errors import ConfigError
from shoal.job import Job
from shoal.job.checks import at_least, choice, finite, fraction, positive, whole
from shoal.tuning.space import Axis, Domain, axes_of, check_one_step, grid, holds
from shoal.tuning.trials import RESOURCES

Resource = Literal["samples", "steps", "seconds", "joules", "dollars"]
COSTS = ("cost", "seconds", "worker_seconds", "samples", "joules", "dollars")
"""What an objective may be besides a metric. `cost`: dollars where runs account for them, else worker-seconds."""


# Search ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Every point, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Random:
    """Independent points (Bergstra & Bengio 2012, "Random search for hyper-parameter optimization", JMLR 13)."""

    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TPE:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for hyper-parameter optimization",
    NeurIPS 24), with all parameters of a family as one group; several objectives at once, too."""

    seed: int = 0
    startup: int = 8
    """Random trials before the model proposes."""

    def __post_init__(self) -> None:
        whole("TPE.startup", self.startup, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846): all trials train together, and the bad ones
    go on from the checkpoint of a good one, with its values perturbed."""

    every: float
    """Amount of `resource` between two looks at a trial."""
    resource: Resource = "steps"
    quantile: float = 0.25
    """Share of the trials that copy, and that are copied."""
    resample: float = 0.25
    """Probability of a new value from the domain, in the place of one 0.8 or 1.2 times as large."""
    seed: int = 0

    def __post_init__(self) -> None:
        positive("Population.every", self.every)
        choice("Population.resource", self.resource, RESOURCES)
        fraction("Population.resample", self.resample, closed=True)
        finite("Population.quantile", self.quantile)
        if not 0 < self.quantile <= 0.5:
            raise ConfigError(f"Population.quantile={self.quantile!r} must be more than 0 and at most 0.5")


# Early stopping -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ASHA:
    """Asynchronous successive halving (Li et al. 2020, "A system for massively parallel hyperparameter tuning",
    arXiv:1810.05934): at `grace`, `grace` x `reduction`, ... only the best 1/`reduction` so far go on."""

    grace: float
    """Amount of `resource` that every trial gets."""
    resource: Resource = "samples"
    reduction: float = 3.0

    def __post_init__(self) -> None:
        _check_rule(self, self.grace, "grace")
        _check_reduction(self, self.reduction)


@dataclass(frozen=True, kw_only=True, slots=True)
class Median:
    """The median rule (Golovin et al. 2017, "Google Vizier"): a trial ends whose best value is worse than the median of
    what the others had on average until then."""

    grace: float
    resource: Resource = "samples"
    at_least: int = 3
    """Trials that must have come as far."""

    def __post_init__(self) -> None:
        _check_rule(self, self.grace, "grace")
        whole("Median.at_least", self.at_least, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperBand:
    """HyperBand (Li et al. 2018, JMLR 18), asynchronous: `ASHA` in several brackets, into one of which a trial falls;
    those of the next get `reduction` times as much before they are compared, in case early values say little."""

    grace: float
    """Amount of `resource` that every trial gets, in the first bracket."""
    resource: Resource = "samples"
    reduction: float = 3.0
    brackets: int = 3

    def __post_init__(self) -> None:
        _check_rule(self, self.grace, "grace")
        _check_reduction(self, self.reduction)
        whole("HyperBand.brackets", self.brackets, 1)


def _check_reduction(rule: Any, reduction: float) -> None:
    kind = type(rule).__name__
    finite(f"{kind}.reduction", reduction)
    if reduction <= 1:
        raise ConfigError(f"{kind}.reduction={reduction!r} must be more than 1, for example 3")


def _check_rule(rule: Any, amount: float, name: str) -> None:
    kind = type(rule).__name__
    finite(f"{kind}.{name}", amount)
    positive(f"{kind}.{name}", amount)
    choice(f"{kind}.resource", rule.resource, RESOURCES)


# The sweep ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """What the whole sweep may use; when the first of them is used up, trials end with a checkpoint."""

    seconds: float | None = None
    """Of wall-clock time."""
    joules: float | None = None
    dollars: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            finite(f"budget.{name}", value)
            positive(f"budget.{name}", value)

    def given(self) -> dict[str, float]:
        return {n: v for n in ("seconds", "joules", "dollars") if (v := getattr(self, n)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Many jobs made from one, to find the best of them. A trial is a run of one of them.

    Raises ConfigError for whatever can be seen to be wrong without the job.
    """

    job: Job | str | Path
    """The base job, or the path of its recipe: seen from the sweep recipe's folder, or from the current one."""
    overrides: tuple[str, ...] = ()
    """Values of the base job that are others in all trials, as in `--set`: `("budget.samples=9600",)`."""
    space: Mapping[str, Domain]
    """What is searched: fields of the job, as in `--set`, and their domains (`shoal.tuning.space`)."""
    metric: str = "val/loss"
    """Of those that the job's evaluation reports. A trial counts with the best that it had."""
    mode: Literal["min", "max"] = "min"
    search: Grid | Random | TPE | Population = field(default_factory=Random)
    first: tuple[Mapping[str, Any], ...] = ()
    """Points of the space that are tried before the search proposes any, and never stopped early: the yardstick, for
    example the values that the base job has."""
    stop_early: ASHA | Median | HyperBand | None = None
    trials: int | None = None
    """How many there will be. Default: a grid's points, else 24. Of a population: its size."""
    at_once: int = 2
    """Trials that train at the same time."""
    workers: int = 2
    """Workers of all trials together, kept warm in a pool."""
    elastic: bool = True
    """Trials share the workers as they come and go: those of one that ends join others in place. False: each has its
    even part, all the time. With `numerics=exact` that changes no result, else none but for rounding."""
    budget: Limit = field(default_factory=Limit)
    objectives: tuple[str, ...] = ()
    """For TPE: more than one thing to make good, the metric first: `("val/loss", "cost")`. Costs are minimised."""
    name: str | None = None
    """Default: the recipe's name, date, time and four letters."""

    def __post_init__(self) -> None:
        if not isinstance(self.job, (Job, str, Path)):
            raise ConfigError(f"job={self.job!r} must be a shoal.Job, or the path of a recipe")
        if isinstance(self.overrides, str):
            raise ConfigError(f"overrides={self.overrides!r} must be several: write ({self.overrides!r},)")
        if not isinstance(self.space, Mapping):
            raise ConfigError(f"space={self.space!r} must be a dictionary of domains by the names of fields")
        axes = axes_of(self.space)
        choice("mode", self.mode, ("min", "max"))
        if not self.metric:
            raise ConfigError("metric is empty; name one that the evaluation reports, for example val/loss")
        _check_kind("search", self.search, (Grid, Random, TPE, Population))
        _check_kind("stop_early", self.stop_early, (ASHA, Median, HyperBand, type(None)))
        if self.trials is not None:
            whole("trials", self.trials, 1)
        whole("at_once", self.at_once, 1)
        whole("workers", self.workers, 1)
        if self.name is not None and (not self.name or any(c in self.name for c in "/\\ \t\n")):
            raise ConfigError(f"name={self.name!r} must be a word that can name a folder (no spaces, no slashes)")
        if isinstance(self.search, Grid):
            grid(axes)
        self._check_first(axes)
        self._check_objectives()
        if isinstance(self.search, Population):
            self._check_population(axes)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return axes_of(self.space)

    @property
    def total(self) -> int:
        """Trials that there will be."""
        if isinstance(self.search, Grid):
            size = sum(1 for _ in grid(self.axes))
            return size if self.trials is None else min(size, self.trials)
        return 24 if self.trials is None else self.trials

    @property
    def resource(self) -> Resource:
        """What early stopping counts, or the natural axis of the curves."""
        rule = self.stop_early or (self.search if isinstance(self.search, Population) else None)
        return rule.resource if rule is not None else "samples"

    def rungs(self, longest: float | None) -> tuple[float, ...]:
        """Amounts of the resource at which trials are compared, up to `longest`."""
        rule = self.stop_early
        if isinstance(rule, (ASHA, HyperBand)) and longest is not None:
            count = max(0, int(math.log(longest / rule.grace, rule.reduction) + 1e-9)) if longest >= rule.grace else -1
            return tuple(rule.grace * rule.reduction**k for k in range(count + 1))
        return ()

    def _check_first(self, axes: tuple[Axis, ...]) -> None:
        for point in self.first:
            if not isinstance(point, Mapping) or not holds(axes, point):
                lacking = [a.name for a in axes if a.exists_in(point) and a.name not in point]
                why = f"it lacks {', '.join(lacking)}" if lacking else "a value or a name in it is not of the space"
                raise ConfigError(f"first has {dict(point)!r}, which is no point of the space: {why}")

    def _check_objectives(self) -> None:
        if not self.objectives:
            return
        said = f"objectives={self.objectives!r}"
        if not isinstance(self.search, TPE):
            raise ConfigError(f"{said} needs search=TPE(), which can weigh several; or leave objectives out")
        if self.stop_early is not None:
            raise ConfigError(
                f"{said} and stop_early exclude each other: a trial that ended early cost less, not better"
            )
        if len(self.objectives) < 2 or self.objectives[0] != self.metric:
            raise ConfigError(f"{said} must be the metric ({self.metric}) and something else, for example 'cost'")
        for name in self.objectives[1:]:
            if "/" not in name:
                choice("an objective", name, COSTS)

    def _check_population(self, axes: tuple[Axis, ...]) -> None:
        if self.stop_early is not None:
            raise ConfigError("search=Population(...) has no stop_early: its bad trials copy good ones; leave it out")
        if not 2 <= self.total <= min(self.at_once, self.workers):
            raise ConfigError(
                f"a population trains all its trials at the same time, and has at least two: trials={self.total} needs "
                f"at_once={max(2, self.total)} and as many workers, not at_once={self.at_once}, workers={self.workers}"
            )
        for axis in axes:
            group, _, name = axis.name.partition(".")
            fine = (group == "optimizer" and name != "name") or (group == "schedule" and name)
            if not fine:
                raise ConfigError(
                    f"a population cannot change {axis.name} while it trains: the state or the data would not fit; it "
                    f"can change values of the optimizer and of the schedule's family, for example optimizer.lr"
                )


def _check_kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        names = ", ".join(k.__name__ for k in kinds if k is not type(None))
        made = isinstance(value, type) and issubclass(value, kinds)
        raise ConfigError(
            f"{name}={value!r} is none of {names}" + (f"; make one: {value.__name__}(...)" if made else "")
        )


def check_amounts(sweep: Sweep, job: Job, samples: float | None, steps: int | None) -> None:
    """Raise ConfigError if nothing of what `sweep` asks of a trial's course can happen.

    `samples`, `steps`: what a trial of the base job uses; None: its budget is not counted in them.
    """
    at_least("steps of a trial", 1 if steps is None else steps, 1)
    check_one_step(job)
    rule: Any = sweep.stop_early or (sweep.search if isinstance(sweep.search, Population) else None)
    if rule is None:
        return
    kind, every = type(rule).__name__, job.evaluation.every
    if every is None or (steps is not None and every >= steps):
        raise ConfigError(
            f"{kind} looks at evaluations, but evaluation.every={every} of {steps} steps gives only the last one; set "
            f"evaluation.every to less in the job, or with --set job.evaluation.every=..."
        )
    name = "every" if isinstance(rule, Population) else "grace"
    first, whole_trial = getattr(rule, name), {"samples": samples, "steps": steps}.get(rule.resource)
    if whole_trial is not None and first >= whole_trial:
        raise ConfigError(
            f"{kind}.{name}={first:g} {rule.resource} is no less than a whole trial ({whole_trial:g}), so that "
            f"nothing would ever be compared; use less"
        )
