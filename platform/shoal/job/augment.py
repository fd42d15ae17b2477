"""Regularisation of the training data, as values: what is done to samples between reading and the model.

`shoal.data.augment` does it. In text (`--set data.augment=...`, `job.json`) they are written as in Python:
`Flip(horizontal=0.5), Mixup(alpha=0.2, classes=10)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import ConfigError
from shoal.job.checks import finite, fraction, positive, whole


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """Mirror each image with these probabilities: left to right, and top to bottom."""

    horizontal: float = 0.5
    vertical: float = 0.0
    column: str = "image"

    def __post_init__(self) -> None:
        fraction("Flip.horizontal", self.horizontal, closed=True)
        fraction("Flip.vertical", self.vertical, closed=True)
        _word("Flip.column", self.column)
        _as_floats(self, "horizontal", "vertical")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """Add `padding` pixels on every side of each image and cut a piece of the old size out, wherever it falls."""

    padding: int = 4
    fill: float = 0.0
    """What the added pixels hold."""
    column: str = "image"

    def __post_init__(self) -> None:
        whole("Crop.padding", self.padding, 1)
        finite("Crop.fill", self.fill)
        _word("Crop.column", self.column)
        _as_floats(self, "fill")


@dataclass(frozen=True, kw_only=True, slots=True)
class Erase:
    """Random erasing (Zhong et al. 2017, arXiv:1708.04896): fill one rectangle of an image, in every channel."""

    probability: float = 0.5
    """Share of the images in which a rectangle is erased."""
    area: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest rectangle, as shares of the image."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height / width, evenly drawn on a logarithmic scale."""
    fill: float | None = 0.0
    """None: noise, even between 0 and 1 (images of whole numbers: 0 to 255), which the paper found best."""
    column: str = "image"

    def __post_init__(self) -> None:
        fraction("Erase.probability", self.probability, closed=True)
        _range("Erase.area", self.area, "(0.02, 0.33)", most=1.0)
        _range("Erase.ratio", self.ratio, "(0.3, 3.3)", most=math.inf)
        if self.fill is not None:
            finite("Erase.fill", self.fill)
        _word("Erase.column", self.column)
        _as_floats(self, "probability", "area", "ratio", "fill")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pairs:
    """What Mixup and CutMix have in common: samples of a virtual shard in pairs, and their labels with them."""

    alpha: float
    """The share that stays of a sample is drawn from Beta(alpha, alpha), for each sample: small, nearly all or nearly
    nothing of it; 1, anything alike."""
    classes: int
    """Labels become shares of that many classes: int [n] -> float32 [n, classes]."""
    probability: float = 1.0
    """Share of the samples that are mixed; the others' labels change their form only."""
    column: str = "image"
    label: str = "label"

    def __post_init__(self) -> None:
        name = type(self).__name__
        finite(f"{name}.alpha", self.alpha)
        positive(f"{name}.alpha", self.alpha)
        whole(f"{name}.classes", self.classes, 2)
        fraction(f"{name}.probability", self.probability, closed=True)
        _word(f"{name}.column", self.column)
        _word(f"{name}.label", self.label)
        if self.column == self.label:
            raise ConfigError(f"{name}.column and {name}.label are both {self.label!r}; name two columns")
        _as_floats(self, "alpha", "probability")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixup(_Pairs):
    """Each sample becomes a weighted mean of itself and another one, so does its label (Zhang et al. 2017,
    arXiv:1710.09412). For images and whatever else is numbers that may be averaged; 0.1 to 0.4 are usual for alpha."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutMix(_Pairs):
    """A rectangle of each image comes from another one; the label, by the share of the area (Yun et al. 2019,
    arXiv:1905.04899). 1 is usual for alpha."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskTokens:
    """Hide tokens from the model, not from the loss: a second column holds the sequences with some tokens replaced.

    For `LanguageModel` and `HuggingFaceLM` it is a regularisation (word dropout; Bowman et al. 2015, arXiv:1511.06349):
    the model sees `into`, and still has to predict every next token of `column`. It makes no sense with a probability
    near 1, nor with a `token` that the text uses itself. A task of your own finds what to restore, as BERT does, where
    the two columns differ.
    """

    probability: float
    """Share of the tokens that are replaced; each is drawn alone."""
    token: int
    """What stands in their place: a token of the model's vocabulary that the text has no other use for."""
    random: float = 0.0
    """Share of the replaced tokens that become a random one instead, any of `vocabulary`; in BERT about 0.1."""
    vocabulary: int | None = None
    """For `random`."""
    column: str = "tokens"
    into: str = "inputs"

    def __post_init__(self) -> None:
        fraction("MaskTokens.probability", self.probability)
        whole("MaskTokens.token", self.token, 0)
        fraction("MaskTokens.random", self.random, closed=True)
        if self.vocabulary is not None:
            whole("MaskTokens.vocabulary", self.vocabulary, 1)
        elif self.random:
            raise ConfigError(f"MaskTokens.random={self.random!r} needs MaskTokens.vocabulary: tokens to draw from")
        _word("MaskTokens.column", self.column)
        _word("MaskTokens.into", self.into)
        if self.column == self.into:
            raise ConfigError(
                f"MaskTokens.into={self.into!r} is the column that it reads, and the targets would be masked, too; "
                f"name another one"
            )
        _as_floats(self, "probability", "random")

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raise ConfigError unless all that it writes is below `vocabulary`, the task's."""
        for name, most in (("token", self.token), ("vocabulary", (self.vocabulary or 1) - 1)):
            if most >= vocabulary:
                raise ConfigError(
                    f"MaskTokens.{name}={getattr(self, name)} in data.augment is beyond task.vocabulary={vocabulary}; "
                    f"lower it, or raise task.vocabulary"
                )


Augmentation = Flip | Crop | Erase | Mixup | CutMix | MaskTokens
"""Whatever `data.augment` may hold."""
KINDS = (Flip, Crop, Erase, Mixup, CutMix, MaskTokens)


def check_augmentations(value: Any) -> None:
    """Raise ConfigError unless `value` is a tuple of augmentations."""
    names = ", ".join(kind.__name__ for kind in KINDS)
    if not isinstance(value, tuple):
        raise ConfigError(
            f"data.augment={value!r} must be a tuple, for example (Flip(), Crop(padding=2)); one alone needs a comma: "
            f"(Flip(),)"
        )
    for i, item in enumerate(value):
        if not isinstance(item, KINDS):
            raise ConfigError(f"data.augment[{i}]={item!r} is no augmentation; there are {names}")


def check_fit(augmentations: Sequence[Augmentation], task: Any, shard_size: int) -> None:
    """Raise ConfigError if samples must be paired and a virtual shard has only one, or if the task has another number
    of classes or tokens."""
    classes, vocabulary = (getattr(task, name, None) for name in ("classes", "vocabulary"))
    for augmentation in augmentations:
        if isinstance(augmentation, _Pairs) and isinstance(classes, int) and augmentation.classes != classes:
            name = type(augmentation).__name__
            raise ConfigError(
                f"{name}.classes={augmentation.classes} in data.augment, but task.classes={classes}; make them equal"
            )
        if isinstance(augmentation, MaskTokens) and isinstance(vocabulary, int):
            augmentation.check_vocabulary(vocabulary)
        if isinstance(augmentation, _Pairs) and shard_size < 2:
            raise ConfigError(
                f"{type(augmentation).__name__} in data.augment mixes samples of one virtual shard, and a shard of "
                f"this job has only one; lower batch.virtual_shards to half of batch.size or less"
            )


def _range(name: str, value: Any, example: str, *, most: float) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ConfigError(f"{name}={value!r} must be two numbers, smallest and largest, for example {example}")
    for number in value:
        finite(name, number)
        positive(name, number)
    if not value[0] <= value[1] <= most:
        limit = f", at most {most:g}" if math.isfinite(most) else ""
        raise ConfigError(f"{name}={value!r} must be the smallest and the largest{limit}, for example {example}")


def _word(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name}={value!r} must be the name of a column")


def _as_floats(value: Any, *names: str) -> None:
    """Whole numbers become floats, so that `alpha=1` and `alpha=1.0` are the same job."""
    for name in names:
        now = getattr(value, name)
        if now is not None:
            object.__setattr__(value, name, tuple(map(float, now)) if isinstance(now, tuple) else float(now))
