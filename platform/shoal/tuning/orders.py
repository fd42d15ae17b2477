"""What is said between a sweep and its trials: what to run, and what came of it. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.tuning.meter import Used
from shoal.tuning.trials import Point, TrialStatus, Value


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One trial to be run."""

    number: int
    name: str
    run_id: str
    fields: Mapping[str, Value]
    fork_from: str | None = None
    """The run from whose checkpoint a new run begins; None: its own last one, if there is one, else the beginning."""
    fork_at: int | None = None
    """The step of that checkpoint."""
    after: int = 0
    """Evaluations up to this step are known."""
    used: Used = field(default_factory=Used)
    """By the runs that this trial had before."""


@dataclass(frozen=True, slots=True)
class Started:
    """The run has begun, or goes on."""

    run_id: str
    folder: str
    total_steps: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The run has evaluated."""

    point: Point


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over."""

    status: TrialStatus
    reason: str = ""


Said = Started | Evaluated | Ended
