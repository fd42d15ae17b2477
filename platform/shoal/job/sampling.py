"""Which samples are used when, as values: the sources of a mixture, a curriculum, a selection by loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shoal.errors import ConfigError
from shoal.job.checks import at_least, choice, finite, fraction, positive

if TYPE_CHECKING:
    from shoal.tasks.base import Task

Weight = float | tuple[tuple[float, float], ...]
"""Constant, or points (progress, weight) between which it changes linearly. Progress is the fraction of the budget."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One of several data sets that are mixed."""

    name: str
    train: str
    """As `data.train`."""
    weight: Weight = 1.0
    """Against the other sources' weights: 2.0 gives twice as many samples as 1.0."""

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            raise ConfigError(f"Source.name={self.name!r} must be letters, digits, - and _: it names metrics")
        if not self.train:
            raise ConfigError(f"the source {self.name!r} has no data: set Source.train to a path or builtin:...")
        for progress, weight in self.weight if isinstance(self.weight, tuple) else ((0.0, self.weight),):
            at_least("Source.weight", weight, 0)
            fraction("a progress in Source.weight", progress, closed=True)
        if self.weight in (0, ()):
            raise ConfigError(
                f"the source {self.name!r} has weight {self.weight}, it would never be used; leave it out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Curriculum:
    """Easy samples first: each pass over the data takes the easiest share of it, which grows with progress."""

    difficulty: str = "compressibility"
    """A column with one number per row, or `compressibility` (how badly a row's bytes compress) or `length` (entries
    before the padding), which are computed."""
    of: str | None = None
    """The column that is looked at to compute it. Default: the task's first."""
    pacing: Literal["linear", "root", "step"] = "linear"
    start: float = 0.2
    """Share of the samples, the easiest ones, that the run begins with."""
    until: float = 0.5
    """Progress at which all samples take part."""
    steps: int = 4
    """Of the pacing `step`."""
    hardest_first: bool = False

    def __post_init__(self) -> None:
        choice("Curriculum.pacing", self.pacing, ("linear", "root", "step"))
        for name in ("start", "until"):
            fraction(f"Curriculum.{name}", getattr(self, name), closed=True)
            positive(f"Curriculum.{name}", getattr(self, name))
        at_least("Curriculum.steps", self.steps, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthWarmup:
    """Short sequences first: the beginnings of the samples, growing to their whole length (Li et al. 2022, "The
    stability-efficiency dilemma: sequence length warmup for training GPT models"). Evaluation sees whole samples."""

    start: int = 32
    """Entries of a sample that count at first: of a language model tokens that it sees."""
    until: float = 0.3
    """Progress at which samples are whole."""
    multiple: int = 8
    """Lengths are multiples of this, but for the whole one: kernels like round sizes, and few of them."""
    columns: tuple[str, ...] = ("tokens",)
    """Columns that are cut, all of one length."""

    def __post_init__(self) -> None:
        at_least("LengthWarmup.start", self.start, 1)
        at_least("LengthWarmup.multiple", self.multiple, 1)
        fraction("LengthWarmup.until", self.until, closed=True)
        positive("LengthWarmup.until", self.until)
        if not self.columns:
            raise ConfigError("LengthWarmup.columns is empty; name the columns that hold sequences")


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Read more samples than are trained on, and train on those that the model is worse at.

    While it lasts, a step reads `pool` times its batch. Each virtual shard's candidates are scored by a forward pass
    with the weights of that step, and as many as the shard has places are trained on. Nothing is remembered from one
    step to the next, so there is nothing that a lost worker could take along."""

    rule: Literal["importance", "hardest"] = "importance"
    """importance: draw candidates with probabilities that grow with their losses, and weight them so that the loss
    stays that of all candidates on average (Zhao & Zhang 2015; Katharopoulos & Fleuret 2018, "Not all samples are
    created equal"). hardest: take those of the largest loss and leave the easiest out (Jiang et al. 2019,
    "Accelerating deep learning by focusing on the biggest losers"), which favours them: see `until`."""
    pool: float = 2.0
    """Candidates for each sample that is trained on."""
    floor: float = 0.2
    """importance: the share of the probability that all candidates get alike. No weight is more than 1 / floor."""
    until: float = 0.8
    """Share of the run's steps after which every sample that is read is trained on again, so that the end of the
    training sees the data as it is (Qin et al. 2024, "InfoBatch"). 1.0: selected to the end."""

    def __post_init__(self) -> None:
        choice("Selection.rule", self.rule, ("importance", "hardest"))
        finite("Selection.pool", self.pool)
        if not self.pool > 1:
            raise ConfigError(
                f"Selection.pool={self.pool!r} must be more than 1: with no more candidates than places there is "
                f"nothing to select; leave data.selection out"
            )
        for name in ("floor", "until"):
            fraction(f"Selection.{name}", getattr(self, name), closed=True)
            positive(f"Selection.{name}", getattr(self, name))

    def candidates(self, places: int) -> int:
        """How many are read for a virtual shard of `places` samples."""
        return round(self.pool * places)

    def last_step(self, total_steps: int) -> int:
        """The last step of a run of `total_steps` that selects; 0: none does."""
        return round(self.until * total_steps)


def check_selection(selection: Selection | None, task: Task, shard_size: int) -> None:
    """Raise ConfigError if the task tells no sample's loss, or a virtual shard would get half a candidate."""
    if selection is None:
        return
    if not task.tells_samples():
        raise ConfigError(
            f"data.selection needs every sample's loss, and {type(task).__name__} tells only the mean; define "
            f"sample_losses(self, model, batch) -> Tensor [samples] in the place of loss"
        )
    found = selection.candidates(shard_size)
    if found <= shard_size or abs(selection.pool * shard_size - found) > 1e-6:
        raise ConfigError(
            f"Selection.pool={selection.pool!r} gives a virtual shard of {shard_size} samples "
            f"{selection.pool * shard_size:g} candidates, and it needs a whole number of them, more than it has "
            f"places; choose {max(shard_size + 1, found) / shard_size!r}, or another batch.size or batch.virtual_shards"
        )
