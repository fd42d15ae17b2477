"""The job: what to train, as one frozen value.

A job says everything that decides the result, and nothing about where it runs. Two equal jobs give the same samples,
learning rates and random numbers at every step, whoever computes them. This module imports neither Ray nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shoal.errors import ConfigError
from shoal.job.augment import Augmentation, check_augmentations, check_fit
from shoal.job.checks import at_least, choice, positive
from shoal.job.cost import Cost
from shoal.job.growth import Growth, check_growth, check_growth_goes_with
from shoal.job.optimizers import Optimizer, check_engine
from shoal.job.sampling import Curriculum, LengthWarmup, Selection, Source, check_selection
from shoal.job.schedules import Cosine, Schedule, check_schedule
from shoal.job.transforms import Transform, check_transforms
from shoal.labels import Selector, check_selector

if TYPE_CHECKING:
    from shoal.tasks.base import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where samples come from and in which order they are used."""

    train: str = ""
    """`builtin:stdlib`, `builtin:digits`, or a Parquet file or folder: local, `s3://`, `gs://` and
    whatever pyarrow reads."""
    sources: tuple[Source, ...] = ()
    """In the place of `train`: several data sets that are mixed."""
    temperature: float | None = None
    """Of a mixture: each weight is multiplied by the source's number of samples to the power of 1 / temperature, so
    that 1.0 mixes in proportion to size and more evens it out. None: the weights as they are."""
    validation: str | None = None
    """Parquet held out for evaluation. The built-in corpora bring their own."""
    block: int | None = None
    """Tokens in a packed sample. Only for built-in text; your own Parquet fixes its own."""
    shuffle: bool = True
    window: int = 8192
    """Samples that are shuffled together: row groups are permuted first, then the samples inside each window."""
    cpus: float = 1.0
    """CPUs that are kept for Ray Data, so that workers can never starve it."""
    ahead_mb: int = 64
    """Megabytes of samples that may wait in the object store ahead of the workers."""
    on_bad: Literal["stop", "skip"] = "stop"
    """A row group that cannot be read ends the run (`stop`); or (`skip`) all training data is read once before a new
    run starts, and such row groups are put on the list of those that are left out (`shoal data verify`)."""
    replacement: bool = False
    """Draw samples with replacement: each place of a window takes any of the window's rows."""
    curriculum: Curriculum | None = None
    """Easy samples first; None: all from the beginning."""
    length_warmup: LengthWarmup | None = None
    """Short sequences first; None: whole ones from the beginning."""
    selection: Selection | None = None
    """Train on the samples of large loss among more that are read; None: on all that are read."""
    transforms: tuple[Transform, ...] = ()
    """Your own functions from raw columns to samples, one after another, for training and evaluation alike."""
    columns: tuple[str, ...] = ()
    """Columns of the files that `transforms` get. Default: the task's."""
    augment: tuple[Augmentation, ...] = ()
    """What is done to the training samples, in this order; evaluation sees them as they are."""

    def __post_init__(self) -> None:
        if bool(self.train) == bool(self.sources):
            both = f"data.train={self.train!r} and data.sources are both set" if self.train else "data.train is empty"
            raise ConfigError(
                f"{both}; name one Parquet folder (or builtin:stdlib, builtin:digits) as data.train, or several as "
                f"data.sources"
            )
        known = [s.name for s in self.sources]
        if len(set(known)) < len(known):
            raise ConfigError(f"data.sources has two sources of one name among {', '.join(known)}; name each otherwise")
        if self.temperature is not None:
            positive("data.temperature", self.temperature)
        if self.replacement and not self.shuffle:
            raise ConfigError("data.replacement=true draws at random, but data.shuffle=false; leave one of them out")
        choice("data.on_bad", self.on_bad, ("stop", "skip"))
        positive("data.window", self.window)
        positive("data.cpus", self.cpus)
        positive("data.ahead_mb", self.ahead_mb)
        if self.block is not None:
            at_least("data.block", self.block, 2)
        check_transforms(self.columns, self.transforms)
        check_augmentations(self.augment)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The global batch of one optimizer step, and its division into virtual shards."""

    size: int = 64
    """Samples per step, over all workers; with `growth`, at the beginning."""
    virtual_shards: int = 8
    """Parts that the members of a view divide among themselves. Fixed by the job, so that the mathematics does not
    depend on the number of workers; it is also the largest number of workers that can help."""
    micro_limit: int | None = None
    """Most samples in one forward pass (a bound on memory). Default: one member's whole share where the task allows."""
    lr_rule: Literal["auto", "none", "linear", "sqrt"] = "auto"
    """How the rate goes with the batch: `optimizer.lr` times (size / lr_base), times its square root, or as it is.
    auto: linear for sgd and lars, sqrt for all others (docs/batch_size.md)."""
    lr_base: int | None = None
    """The batch size that `optimizer.lr` is meant for. None: `size`, so that only growth changes the rate."""
    growth: Growth | None = None
    """Larger batches later: `Milestones` of progress, or `ByNoise`. None: `size` throughout."""

    def __post_init__(self) -> None:
        positive("batch.size", self.size)
        positive("batch.virtual_shards", self.virtual_shards)
        if self.size % self.virtual_shards:
            near = [v for v in range(1, min(self.size, 4 * self.virtual_shards) + 1) if self.size % v == 0]
            raise ConfigError(
                f"batch.size={self.size} cannot be split into batch.virtual_shards={self.virtual_shards} equal parts; "
                f"use virtual_shards from {near}, or a batch size that is a multiple of {self.virtual_shards}"
            )
        if self.micro_limit is not None and self.micro_limit < self.shard_size:
            raise ConfigError(
                f"batch.micro_limit={self.micro_limit} is smaller than one virtual shard ({self.shard_size} samples); "
                f"raise batch.virtual_shards to {self.size // self.micro_limit or self.size} or more"
            )
        choice("batch.lr_rule", self.lr_rule, ("auto", "none", "linear", "sqrt"))
        if self.lr_base is not None:
            positive("batch.lr_base", self.lr_base)
        check_growth(self)

    @property
    def shard_size(self) -> int:
        """Samples in one virtual shard; as the batch grows they become more."""
        return self.size // self.virtual_shards

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes that the batch has, or may come to have, in rising order."""
        return (self.size,) if self.growth is None else self.growth.sizes(self.size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long to train: exactly one of them. Of steps, samples and epochs the run takes the fewest whole steps that
    reach the budget; of seconds, joules and dollars as many as end nearest to it, however the workers come and go."""

    steps: int | None = None
    samples: int | None = None
    """Samples that are read: with `data.selection` every candidate counts, trained on or not."""
    epochs: float | None = None
    """Passes over the data, in samples that are read, as `samples`."""
    seconds: float | None = None
    """Of training, by the clock: from the first view on, evaluations and changes of the workers included, the time
    between two launches of a run not."""
    joules: float | None = None
    """Of all workers, from their start to their end, as their meters say, or the estimate where there is none."""
    dollars: float | None = None
    """For all workers, from their start to their end; needs a price (`cost`)."""

    def __post_init__(self) -> None:
        given = {k: v for k in _BUDGETS if (v := getattr(self, k)) is not None}
        if len(given) != 1:
            said = ", ".join(f"{k}={v}" for k, v in given.items()) or "none of them"
            raise ConfigError(f"budget needs exactly one of {', '.join(_BUDGETS)}; got {said}")
        for name, value in given.items():
            positive(f"budget.{name}", value)

    @property
    def spent(self) -> str | None:
        """What is used up by the doing, so that nobody knows beforehand how many steps there will be: one of SPENT;
        None: the number of steps is known."""
        return next((name for name in SPENT if getattr(self, name) is not None), None)


SPENT = ("seconds", "joules", "dollars")
_BUDGETS = ("steps", "samples", "epochs", *SPENT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Who may take part. How many do never changes the result."""

    min: int = 1
    max: int = 2
    cpus: float = 1.0
    """CPUs that each worker reserves; also its number of computing threads (at least one)."""
    gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()
    """Other Ray resources for each worker, as (name, amount) pairs."""
    accelerator_type: str | None = None
    """Only nodes with this type of accelerator, by Ray's name (`A100`, `L4`)."""
    label_selector: Selector = ()
    """Only nodes whose labels meet these conditions, as (key, condition) pairs; a condition is a value, `!value`,
    `in(a, b)` or `!in(a, b)`."""
    priority: int = 0
    """Of runs on one cluster that is too small for all, those of a higher one take workers from those of a lower one
    (docs/capacity.md)."""
    idle_s: float = 60.0
    """A worker that makes no step shorter waits for so long as a spare, ready to step in, before it is given back."""
    silence_s: float = 300.0
    """A worker that gets on with nothing for this long is killed and counts as lost. Once steps are committed their
    length decides, if that is sooner: 20 steps, but at least 10 seconds."""
    stragglers: Literal["report", "rebalance", "replace"] = "report"
    """What to do about a worker that is persistently slower than its peers: name it, give it fewer virtual shards, or
    replace it by a new one. None of them changes the result."""
    start_s: float = 180.0
    """Longest wait for workers to start."""

    def __post_init__(self) -> None:
        if isinstance(self.resources, dict):  # as Ray itself takes them
            object.__setattr__(self, "resources", tuple(self.resources.items()))
        if isinstance(self.label_selector, dict):
            object.__setattr__(self, "label_selector", tuple(self.label_selector.items()))
        check_selector("workers.label_selector", self.label_selector)
        at_least("workers.idle_s", self.idle_s, 0)
        if not 1 <= self.min <= self.max:
            raise ConfigError(f"need 1 <= workers.min <= workers.max, got min={self.min} and max={self.max}")
        positive("workers.cpus", self.cpus)
        at_least("workers.gpus", self.gpus, 0)
        positive("workers.silence_s", self.silence_s)
        choice("workers.stragglers", self.stragglers, ("report", "rebalance", "replace"))
        positive("workers.start_s", self.start_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """How the state is kept and reduced. Changes speed and memory, never the mathematics."""

    name: Literal["replicated", "zero"] = "replicated"
    stage: Literal[1, 2, 3] = 2
    """ZeRO stage: shard the optimizer state (1), also the gradients (2), also the parameters (3)."""
    offload: bool = False
    """ZeRO: keep the optimizer state in host memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward and backward in bfloat16; parameters and optimizer state stay fp32."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""

    def __post_init__(self) -> None:
        choice("engine.name", self.name, ("replicated", "zero"))
        choice("engine.stage", self.stage, (1, 2, 3))
        choice("engine.precision", self.precision, ("fp32", "bf16"))
        if self.offload and self.name != "zero":
            raise ConfigError(
                "engine.offload=True needs engine.name=zero: the replicated engine keeps its state with the model"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """When to evaluate on the validation data, and on how much of it."""

    every: int | None = 100
    """Steps between evaluations; None: only at the end. There is always one at the end."""
    samples: int = 1024
    """At most this many samples, always the first ones."""

    def __post_init__(self) -> None:
        if self.every is not None:
            positive("evaluation.every", self.every)
        positive("evaluation.samples", self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoints:
    """When to write durable checkpoints, where, and which of them to keep. There is always one at the end."""

    every: int | None = 100
    """Steps between checkpoints; None: only at the end."""
    path: str | None = None
    """Folder or URI (`s3://…`, `gs://…`); each run gets a folder of its own in it. Default: inside the run folder."""
    keep_last: int | None = 2
    """None: all of them."""
    keep_best: str | None = None
    """Also keep the one with the lowest value of this metric, for example `val/loss`; `-val/accuracy`: the highest."""
    best_count: int | None = 1
    """How many `keep_best` keeps; None: all."""
    keep_every: int | None = None
    """Also keep those whose step is a multiple of this."""
    export: bool = True
    """Write the final model as safetensors + config that plain torch or transformers loads."""

    def __post_init__(self) -> None:
        for name in ("every", "keep_last", "keep_every", "best_count"):
            if getattr(self, name) is not None:
                positive(f"checkpoints.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class Failures:
    """What a run may survive. An error in the user's own code fails it at once and uses none of these."""

    max_failures: int = 3
    """Losses of workers that the run survives without a committed step in between; -1: no limit; 0: none at all.
    Workers that were ended on request, or whose node was reclaimed, do not count."""
    snapshot_every: int | None = None
    """ZeRO: steps between two snapshots in peers' memory, and so the most that a loss makes the run compute again.
    None: as often as costs at most 2 % of the time."""

    def __post_init__(self) -> None:
        at_least("failures.max_failures", self.max_failures, -1)
        if self.snapshot_every is not None:
            positive("failures.snapshot_every", self.snapshot_every)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to train. Give it a task, data and a budget; everything else has a default that works."""

    task: Task
    data: Data
    budget: Budget
    name: str = "job"
    batch: Batch = field(default_factory=Batch)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Cosine)
    """The learning rate as a function of progress; docs/schedules.md has the families."""
    workers: Workers = field(default_factory=Workers)
    engine: Engine = field(default_factory=Engine)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    failures: Failures = field(default_factory=Failures)
    cost: Cost = field(default_factory=Cost)
    """Prices, and factors for what cannot be measured; docs/cost.md."""
    numerics: Literal["fast", "exact"] = "fast"
    """fast: results agree to rounding, whoever computes. exact: to the last bit, on any number of workers and through
    any change of it, for some speed and memory; see docs/numerics.md."""
    seed: int = 0

    def __post_init__(self) -> None:
        choice("numerics", self.numerics, ("fast", "exact"))
        for method in ("build", "loss"):
            if not callable(getattr(self.task, method, None)):
                raise ConfigError(
                    f"task={self.task!r} has no method {method}(); derive from shoal.Task and define build() and loss()"
                )
        if not self.name or any(c in self.name for c in "/\\ \t\n"):
            raise ConfigError(f"name={self.name!r} must be a word that can name a folder (no spaces, no slashes)")
        check_schedule("schedule", self.schedule)
        check_engine(self.optimizer, self.engine.name)
        check_fit(self.data.augment, self.task, self.batch.shard_size)
        for size in self.batch.sizes:
            check_selection(self.data.selection, self.task, size // self.batch.virtual_shards)
        check_growth_goes_with(self)
        _check_foreseen(self)
        _check_priced(self)
        if self.workers.max > self.batch.virtual_shards:
            raise ConfigError(
                f"workers.max={self.workers.max} is more than batch.virtual_shards={self.batch.virtual_shards}, "
                f"and a worker without a virtual shard would idle; lower workers.max or raise batch.virtual_shards"
            )


def _check_foreseen(job: Job) -> None:
    """Raise ConfigError if the order of the samples depends on how long the run will be, and nobody can know that."""
    unit, data = job.budget.spent, job.data
    asked = {
        "data.curriculum": data.curriculum is not None,
        "weights of data.sources along progress": any(isinstance(s.weight, tuple) for s in data.sources),
        "Selection.until below 1": data.selection is not None and data.selection.until < 1,
    }
    if unit is not None and (found := [what for what, there in asked.items() if there]):
        raise ConfigError(
            f"budget.{unit}={getattr(job.budget, unit):g} does not go with {' and '.join(found)}: that fixes the order "
            f"of the samples by progress, and the order must be known before anybody knows how many steps a budget of "
            f"{unit} gives; use a budget of steps, samples or epochs"
        )


def _check_priced(job: Job) -> None:
    """Raise ConfigError if the budget is money and nobody says what a worker costs."""
    if job.budget.dollars is not None and not job.cost.priced:
        raise ConfigError(
            f"budget.dollars={job.budget.dollars:g}, but there is no price; set cost.per_hour (dollars for an hour of "
            f"one worker), or cost.instance (a type of machine, for example g5.xlarge, whose price is in the table)"
        )
