"""Image classification with a small network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.errors import ConfigError, TaskError
from shoal.job.checks import at_least, choice, fraction
from shoal.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ImageClassifier(Task):
    """Tell images apart. Columns `image`: [channels, height, width], about 0 to 1; `label`: 0 to classes - 1, or shares
    of the classes [classes], as Mixup and CutMix (`data.augment`) make them for training."""

    network: Literal["mlp", "cnn"] = "mlp"
    classes: int = 10
    channels: int = 1
    height: int = 8
    width: int = 8
    features: int = 128
    """Width of the hidden layers."""
    layers: int = 2
    dropout: float = 0.0

    columns = ("image", "label")

    def __post_init__(self) -> None:
        choice("task.network", self.network, ("mlp", "cnn"))
        at_least("task.classes", self.classes, 2)
        for name in ("channels", "height", "width", "features", "layers"):
            at_least(f"task.{name}", getattr(self, name), 1)
        fraction("task.dropout", self.dropout)

    @property
    def per_sample(self) -> bool:  # type: ignore[override]
        return self.dropout == 0

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return self.channels, self.height, self.width

    def check_data(self, columns: Mapping[str, tuple[int | None, ...]], about: Mapping[str, Any]) -> None:
        shape = columns.get("image", self.image)
        if None not in shape and math.prod(n for n in shape if n) != math.prod(self.image):
            raise ConfigError(
                f"the data has images of shape {list(shape)}, but the task expects {list(self.image)}; set "
                f"task.channels, task.height and task.width to the data's"
            )
        classes = about.get("classes")
        if classes is not None and classes > self.classes:
            raise ConfigError(
                f"the data has {classes} classes, but task.classes={self.classes}; set task.classes={classes}"
            )

    def build(self) -> nn.Module:
        from shoal.tasks.image_models import CNN, MLP

        if self.network == "cnn":
            return CNN(
                channels=self.channels,
                classes=self.classes,
                width=self.features,
                layers=self.layers,
                dropout=self.dropout,
            )
        return MLP(
            pixels=math.prod(self.image),
            classes=self.classes,
            width=self.features,
            layers=self.layers,
            dropout=self.dropout,
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._cross_entropy(model, batch, "mean")

    def sample_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._cross_entropy(model, batch, "none")

    def _cross_entropy(self, model: nn.Module, batch: Batch, reduction: str) -> Tensor:
        from torch.nn import functional

        logits, labels = self._logits(model, batch), self._labels(batch)
        try:
            return functional.cross_entropy(logits, labels, reduction=reduction)
        except IndexError as error:
            raise TaskError(
                f"the data holds a label outside 0 to {self.classes - 1} ({error}); set task.classes to the data's"
            ) from error

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        from torch.nn import functional

        logits, labels = self._logits(model, batch), batch["label"].long()
        right = (logits.argmax(1) == labels).float().mean()
        return {"loss": functional.cross_entropy(logits, labels), "accuracy": right}

    def _labels(self, batch: Batch) -> Tensor:
        """int64 [n], or shares of the classes: fp32 [n, classes]."""
        labels = batch["label"]
        if labels.dim() != 2 or not labels.is_floating_point():
            return labels.long()
        if labels.shape[1] != self.classes:
            raise TaskError(
                f"labels are shares of {labels.shape[1]} classes, but task.classes={self.classes}; make them equal"
            )
        return labels.float()

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """fp32 [n, classes]. Images may come flat, or as integers."""
        images = batch["image"]
        return model(images.reshape(len(images), *self.image).float()).float()

    def config(self, model: nn.Module) -> dict[str, Any]:
        """The task's own fields: `ImageClassifier(**fields).build()` makes the model again."""
        return {"task": "shoal.tasks.ImageClassifier", **dataclasses.asdict(self)}
