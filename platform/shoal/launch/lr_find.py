"""The learning-rate range test on the normal machinery: workers may come, go and die in it as in any run."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shoal.coordinator.status import Display, Outcome
from shoal.errors import NOT_FINITE, ConfigError, Interrupted, TrainingFailed
from shoal.job import Budget, Job, RangeTest
from shoal.job.steps import total_steps
from shoal.launch.api import RunOptions, run_job
from shoal.optim.range_test import LEAST, Finding, analyse, rule_for
from shoal.run_folder import RunFolder
from shoal.state.storage import Storage
from shoal.tracking.ledger import effective, read

PLACE = "lr-find"
"""Folder beside the runs that holds the tests; `shoal runs` does not look there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """What is tested: `steps` rates from `low` to `high`, each the same multiple of the one before."""

    low: float = 1e-6
    high: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ConfigError(
                f"--from {self.low:g} and --to {self.high:g} are no range: need 0 < from < to, for example --from 1e-6 "
                f"--to 1"
            )
        if self.steps < LEAST:
            raise ConfigError(f"--steps {self.steps} is too few to see a slope; use at least {LEAST}, better 100")

    def rate(self, step: int) -> float:
        """The rate of step `step`, from 1 on."""
        return float(self.low * (self.high / self.low) ** ((step - 1) / (self.steps - 1)))

    @property
    def schedule(self) -> RangeTest:
        """The family's curve is at its start before the first step; here the first step trains with `low`."""
        return RangeTest(start=float((self.low / self.high) ** (self.steps / (self.steps - 1))))


@dataclass(frozen=True, kw_only=True, slots=True)
class RateFound:
    """A test that is done."""

    job: Job
    range: Range
    finding: Finding
    folder: RunFolder

    def to_json(self) -> dict[str, Any]:
        """What machines read."""
        found = self.finding
        return {
            "format": 1,
            "job": self.job.name,
            "optimizer": self.job.optimizer.name,
            "folder": str(self.folder.path),
            "from": self.range.low,
            "to": self.range.high,
            "steps": self.range.steps,
            "suggestion": found.suggestion,
            "steepest": found.steepest,
            "lowest": found.lowest,
            "tenth_of_lowest": found.tenth,
            "diverged_at": found.diverged_at,
            "reason": found.reason,
            "rates": list(found.rates),
            "losses": list(found.losses),
            "smoothed": list(found.smoothed),
        }


def find_rate(job: Job, asked: Range, options: RunOptions, display: Display) -> RateFound:
    """Train `job` once with rising rates, and say what that shows. Nothing is evaluated, recorded in MLflow or kept but
    the test's folder, `lr-find/NAME` beside the runs.

    Raises what `run_job` raises; TrainingFailed if the run breaks (but not because of too high a rate), Interrupted if
    its user stopped it.
    """
    _long_enough(job, asked)
    trained = replace(
        job,
        optimizer=replace(job.optimizer, lr=asked.high, ema=None),
        batch=replace(job.batch, growth=None),
        schedule=asked.schedule,
        budget=Budget(steps=asked.steps),
        evaluation=replace(job.evaluation, every=None),
        checkpoints=replace(job.checkpoints, every=None, export=False, keep_best=None),
    )
    outcome = run_job(
        trained,
        options=replace(
            options,
            scratch=options.runs_dir.absolute() / PLACE,
            until_step=asked.steps,
            divergence=rule_for(asked.steps),
        ),
        display=display,
    )
    folder = RunFolder(Path(outcome.folder))
    _forget_state(trained, folder)
    broke = _judge(outcome, folder, asked)
    commits = [e for e in effective(read(folder.ledger)[0]) if e["kind"] == "commit" and e["loss"] == e["loss"]]
    rates, losses = [float(e["lr"]) for e in commits], [float(e["loss"]) for e in commits]
    next_rate = asked.rate(len(commits) + 1) if broke else None
    finding = analyse(rates, losses, asked.steps, next_rate=next_rate)
    return RateFound(job=job, range=asked, finding=finding, folder=folder)


def _long_enough(job: Job, asked: Range) -> None:
    """Raise ConfigError if the test would be longer than what it is made for, as far as that is known without data; or
    if what it finds would not be what `optimizer.lr` means."""
    batch = job.batch
    if batch.lr_base not in (None, batch.size):
        raise ConfigError(
            f"the test finds a rate for batch.size={batch.size}, and batch.lr_base={batch.lr_base} says that "
            f"optimizer.lr is meant for another; test with --set batch.lr_base=none, then set "
            f"batch.lr_base={batch.size} with the rate that is found"
        )
    if job.budget.epochs is None and (whole := total_steps(job, 0)) < asked.steps:
        raise ConfigError(
            f"--steps {asked.steps} is more than the {whole} steps of the job's whole budget, so that the test would "
            f"cost more than the training; use fewer (at least {LEAST}), or give the job more"
        )


def _judge(outcome: Outcome, folder: RunFolder, asked: Range) -> bool:
    """Whether the test ended with a step whose gradient was not finite. Raises if it has no proper end."""
    if outcome.status == "failed":
        if NOT_FINITE in (outcome.error or ""):
            return True
        raise TrainingFailed(f"the test broke after {outcome.step} steps: {outcome.error}")
    if outcome.step < asked.steps and folder.read().get("reason") != rule_for(asked.steps).reason:
        raise Interrupted(f"stopped after {outcome.step} of {asked.steps} steps, which says nothing yet; start it anew")
    return False


def _forget_state(job: Job, folder: RunFolder) -> None:
    """Weights that were trained with such rates are of no use."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    if job.checkpoints.path:
        Storage(job.checkpoints.path).delete_folder(folder.run_id)
