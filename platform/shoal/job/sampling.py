"""Which samples are used when, as values: the sources of a mixture, and a curriculum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.errors import ConfigError
from shoal.job.checks import at_least, choice, fraction, positive

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
