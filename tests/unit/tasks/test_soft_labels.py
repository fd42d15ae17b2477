"""Labels that are shares of classes, as Mixup and CutMix make them."""

from __future__ import annotations

import pytest
import torch

from shoal.errors import TaskError
from shoal.tasks import ImageClassifier

pytestmark = pytest.mark.unit


def test_the_loss_of_shares_is_the_mean_of_the_losses_of_their_classes() -> None:
    task = ImageClassifier(features=8)
    torch.manual_seed(0)
    model, images = task.build(), torch.rand(6, 1, 8, 8)
    a, b, share = torch.arange(6), torch.arange(6) + 3, torch.linspace(0, 1, 6)
    one_hot = torch.eye(10)
    soft = share[:, None] * one_hot[a] + (1 - share[:, None]) * one_hot[b]

    def loss(i: int, label: torch.Tensor) -> torch.Tensor:
        return task.loss(model, {"image": images[i : i + 1], "label": label[i : i + 1]})

    alone = torch.stack([share[i] * loss(i, a) + (1 - share[i]) * loss(i, b) for i in range(6)])
    torch.testing.assert_close(task.loss(model, {"image": images, "label": soft}), alone.mean())
    hard = {"image": images, "label": one_hot[a]}
    torch.testing.assert_close(task.loss(model, hard), task.loss(model, {"image": images, "label": a}))


def test_shares_of_another_number_of_classes_are_named() -> None:
    task = ImageClassifier(features=8)
    with pytest.raises(TaskError, match=r"shares of 7 classes, but task\.classes=10"):
        task.loss(task.build(), {"image": torch.rand(2, 1, 8, 8), "label": torch.rand(2, 7)})
