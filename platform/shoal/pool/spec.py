"""What a pool is, what a run asks of it, and what it answers: plain values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from shoal.errors import ConfigError
from shoal.job import Job, Workers
from shoal.labels import Selector
from shoal.pool.division import Claim
from shoal.worker.outfit import Kind

NAMESPACE = "shoal"


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolSpec:
    """How many workers a pool has, and what each takes of the cluster."""

    workers: int
    """At most; they are started as they are needed."""
    warm: int | None = None
    """So many are started at once and kept; None: all."""
    cpus: float = 1.0
    """CPUs that each worker reserves."""
    gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()
    """Other Ray resources for each worker, as (name, amount) pairs."""
    accelerator_type: str | None = None
    label_selector: Selector = ()
    """As in a job's `workers`."""
    numerics: Literal["fast", "exact"] = "fast"
    """What new processes are made ready for. A run that wants the other gets processes of its own kind: those at rest
    are replaced."""
    sharded: bool = False
    """Also import DeepSpeed ahead of the first run."""
    runs: int = 1
    """For so many runs at a time a coordinator and a feed are kept warm, beside the workers."""
    reading_cpus: float = 1.0
    """CPUs beside those of the workers, for reading all runs' data, where a local cluster is started for the pool."""
    start_s: float = 180.0
    """Longest wait for a worker to start."""
    name: str = "pool"

    def __post_init__(self) -> None:
        if self.workers < 1 or not 0 <= (self.warm or 0) <= self.workers:
            raise ConfigError(f"need workers >= 1 and 0 <= warm <= workers, got {self.workers} and {self.warm}")
        if self.runs < 0:
            raise ConfigError(f"PoolSpec.runs={self.runs} must not be negative")
        if not re.fullmatch(r"[A-Za-z0-9._-]+", self.name):
            raise ConfigError(f"a pool's name is of letters, digits, '.', '_' and '-', got {self.name!r}")
        _ = self.place  # checks the rest

    @property
    def place(self) -> Workers:
        """What one worker takes."""
        return Workers(
            min=1, max=self.workers, cpus=self.cpus, gpus=self.gpus, resources=self.resources, start_s=self.start_s,
            accelerator_type=self.accelerator_type, label_selector=self.label_selector,
        )  # fmt: skip

    @property
    def kind(self) -> Kind:
        """The kind of its new processes."""
        return Kind(self.numerics, max(1, int(self.cpus)), bool(self.gpus))

    def refusal(self, job: Job) -> str | None:
        """Why this pool can never run `job`; None: it can."""
        want = job.workers
        if want.min > self.workers:
            return (
                f"workers.min={want.min} is more than the {self.workers} workers of the pool {self.name!r}; lower "
                f"workers.min or open a larger pool"
            )
        has: dict[str, float] = {"CPU": self.cpus, "GPU": self.gpus, **dict(self.resources)}
        asked: dict[str, float] = {"CPU": want.cpus, "GPU": want.gpus, **dict(want.resources)}
        lacking = [f"{name}: {amount:g}, not {has.get(name, 0):g}" for name, amount in asked.items()
                   if amount > has.get(name, 0)]  # fmt: skip
        if lacking:
            return (
                f"each worker of this job needs more than one of the pool {self.name!r} has ({'; '.join(lacking)}); "
                f"lower workers.cpus, workers.gpus or workers.resources, or open a pool of larger workers"
            )
        wanted = [f"workers.label_selector {key}={c}" for key, c in set(want.label_selector) - set(self.label_selector)]
        if want.accelerator_type not in (None, self.accelerator_type):
            wanted.append(f"workers.accelerator_type={want.accelerator_type}")
        if wanted:
            return (
                f"this job wants {' and '.join(wanted)}, which the pool {self.name!r} was not opened with; leave it "
                f"out, or open a pool with it"
            )
        return None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a run's coordinator says to the pool, again and again."""

    run: str
    """The launch (`RunPlan.key`)."""
    run_id: str
    line: str
    """Who speaks: one coordinator's process, for one launch. Words of one that has left may come late."""
    coordinator: str
    """Name of its actor: when it is gone for good, its workers come back."""
    sizes: tuple[int, ...]
    kind: Kind
    holds: frozenset[str]
    """Lendings that it has and has not given back."""
    unfit: frozenset[str] = frozenset()
    """Lendings that it gave back, whose processes are not to be used again."""
    heard: int = 0
    """Number of the last answer that it has heard."""


@dataclass(frozen=True, slots=True)
class Lent:
    """A worker that is lent to a run."""

    id: str
    """Of this lending: the worker's name and a number."""
    actor: Any


@dataclass(frozen=True, slots=True)
class Answer:
    """What the pool says to a run."""

    number: int
    allotted: int
    reason: str
    lent: tuple[Lent, ...]
    """All that it has."""


@dataclass(frozen=True, slots=True)
class WorkerInPool:
    """One worker of a pool, for people and tests."""

    id: str
    kind: Kind
    state: str
    """starting, idle, lent, resting."""
    run_id: str | None
    lendings: int
    """How many runs it has served, or serves."""


@dataclass(frozen=True, slots=True)
class RunInPool:
    """One run that has a claim."""

    run_id: str
    held: int
    allotted: int
    reason: str
    weight: float


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """How a pool stands."""

    spec: PoolSpec
    workers: tuple[WorkerInPool, ...]
    runs: tuple[RunInPool, ...]
    asked: int
    """Places that the cluster has not granted yet."""
    coordinators: int
    """Coordinators that are warm and free."""


@dataclass(slots=True)
class Claimant:
    """What the pool knows of a run."""

    ask: Ask
    claim: Claim
    arrival: int
    at: float
    """When it was last heard, on a monotonic clock."""
    answer: Answer = Answer(0, 0, "", ())
    """The last one that was made for it."""

    def hear(self, ask: Ask, claim: Claim, now: float) -> None:
        """What it says now. Its place in the queue stays."""
        self.ask, self.at = ask, now
        self.claim = replace(claim, since=self.arrival, begun=self.claim.begun)

    def has(self, count: int) -> None:
        """So many are lent to it."""
        if count >= self.claim.low:
            self.claim = replace(self.claim, begun=True)


def pool_name(name: str) -> str:
    """Name of a pool's actor."""
    return f"shoal-pool-{name}"
