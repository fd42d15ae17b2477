from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from shoal.errors import ConfigError, TaskError
from shoal.tasks import ImageClassifier

pytestmark = pytest.mark.unit


def batch(n: int = 6, shape: tuple[int, ...] = (1, 8, 8)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.rand(n, *shape, generator=generator), "label": torch.arange(n) % 10}


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_both_networks_train_sample_by_sample(network: str) -> None:
    task = ImageClassifier(network=network, features=16)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = task.build()
    loss = task.loss(model, batch())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    alone = [task.loss(model, {k: v[i : i + 1] for k, v in batch().items()}) for i in range(6)]
    torch.testing.assert_close(loss, torch.stack(alone).mean())


@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_one_pixel_and_flat_images_will_do(network: str) -> None:
    task = ImageClassifier(network=network, features=8, height=1, width=1)  # type: ignore[arg-type]
    task.loss(task.build(), batch(3, (1, 1, 1)))
    task = ImageClassifier(network=network, features=8)  # type: ignore[arg-type]
    model = task.build()
    flat = {**batch(), "image": batch()["image"].flatten(1)}
    assert torch.equal(task.loss(model, flat), task.loss(model, batch()))


def test_accuracy_is_the_part_that_is_right() -> None:
    task = ImageClassifier()
    logits = torch.eye(10)[torch.tensor([0, 1, 2, 9, 9, 5])]
    metrics = task.evaluate(lambda images: logits, batch())  # type: ignore[arg-type]
    assert metrics["accuracy"].item() == pytest.approx(4 / 6)


def test_labels_and_images_that_do_not_suit_are_named() -> None:
    task = ImageClassifier(classes=4)
    with pytest.raises(TaskError, match=r"label outside 0 to 3"):
        task.loss(task.build(), batch())
    with pytest.raises(ConfigError, match=r"10 classes, but task.classes=4"):
        task.check_data({"image": (1, 8, 8)}, {"classes": 10})
    with pytest.raises(ConfigError, match=r"shape \[3, 32, 32\].*task expects \[1, 8, 8\]"):
        task.check_data({"image": (3, 32, 32)}, {})
    with pytest.raises(ConfigError, match=r"did you mean \"cnn\""):
        ImageClassifier(network="cn")  # type: ignore[arg-type]


def test_its_configuration_builds_it_again() -> None:
    task = ImageClassifier(network="cnn", features=8)
    said = task.config(task.build())
    assert ImageClassifier(**{f.name: said[f.name] for f in fields(task)}) == task
    assert replace(task, dropout=0.1).per_sample is False


def test_each_samples_loss_has_the_loss_as_its_mean() -> None:
    task = ImageClassifier(network="mlp")
    model = task.build()
    batch = {"image": torch.randn(6, 1, 8, 8), "label": torch.arange(6)}
    each = task.sample_losses(model, batch)
    assert each.shape == (6,)
    torch.testing.assert_close(each.mean(), task.loss(model, batch))
