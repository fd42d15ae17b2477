"""Tiny tasks for the engines' contract, each with one property that an engine can get wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shoal.tasks.base import Batch, Task

ROWS = 512
FEATURES = 12
TOKENS = 17


def rows(start: int, stop: int, *, device: torch.device | None = None) -> Batch:
    """Samples of the endless stream at positions [start, stop): a fixed data set, over and over."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(ROWS, FEATURES, generator=generator)
    y = torch.sin(x.sum(1, keepdim=True)) + 0.1 * torch.randn(ROWS, 1, generator=generator)
    tokens = torch.randint(0, 32, (ROWS, TOKENS), generator=generator)
    at = torch.arange(start, stop) % ROWS
    return {name: column[at].to(device or "cpu") for name, column in (("x", x), ("y", y), ("tokens", tokens))}


@dataclass(frozen=True)
class Regression(Task):
    """A perceptron with an odd number of elements, so that nothing divides evenly."""

    columns = ("x", "y")
    per_sample = True
    width: int = 21

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(FEATURES, self.width),
            nn.Tanh(),
            nn.Linear(self.width, self.width),
            nn.Tanh(),
            nn.Linear(self.width, 1),
        )

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.mse_loss(model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        error = model(batch["x"]) - batch["y"]
        return {"loss": error.square().mean(), "absolute": error.abs().mean()}


class Dropping(Regression):
    """Draws random numbers."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))


class Normalizing(Regression):
    """Has buffers that change: batch norm."""

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 1))


class Smooth(Regression):
    """Tells each sample's loss; samples may share a pass."""

    def sample_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"]) - batch["y"]).square().squeeze(1)


class Telling(Smooth):
    """Draws random numbers and has batch norm, too."""

    def build(self) -> nn.Module:
        # A shard may hold one sample several times and little else; a small eps would then make some 300 times as much
        # of how this processor rounds.
        hidden = (nn.Linear(FEATURES, 16, bias=False), nn.BatchNorm1d(16, eps=0.1), nn.Tanh(), nn.Dropout(0.3))
        return nn.Sequential(*hidden, nn.Linear(16, 1))


class _Partial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(FEATURES, 9)
        self.idle = nn.Linear(9, 9)
        self.frozen = nn.Linear(9, 9)
        self.frozen.requires_grad_(False)
        self.sometimes = nn.Parameter(torch.full((9,), 0.1))
        self.head = nn.Linear(9, 1)

    def forward(self, x: Tensor, *, some: bool) -> Tensor:
        h = torch.tanh(self.frozen(torch.tanh(self.used(x))))
        return self.head(h * self.sometimes if some else h)


@dataclass(frozen=True)
class Partial(Regression):
    """One layer never used, one frozen, and with `some` one parameter that only some samples use."""

    per_sample = False
    some: bool = False

    def build(self) -> nn.Module:
        return _Partial()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        some = not self.some or bool(batch["x"][0, 0] > 0)
        return functional.mse_loss(model(batch["x"], some=some), batch["y"])

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(model, batch)}


class _Demanding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, width, bias=False)  # batch norm would take a bias away again
        self.norm = nn.BatchNorm1d(width)
        self.middle = nn.Linear(width, width)
        self.frozen = nn.Linear(width, width)
        self.frozen.requires_grad_(False)
        self.idle = nn.Linear(width, 10)
        self.sometimes = nn.Parameter(torch.full((width,), 0.1))
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor, *, some: bool) -> Tensor:
        h = functional.dropout(torch.tanh(self.norm(self.first(x))), 0.3, training=self.training)
        h = functional.gelu(self.middle(h)) + torch.sin(self.frozen(h))
        return self.head(h * self.sometimes if some else h)


@dataclass(frozen=True)
class Demanding(Regression):
    """Everything at once: odd sizes, dropout, batch norm, parameters frozen, idle, and used by some samples only."""

    per_sample = False
    width: int = 181

    def build(self) -> nn.Module:
        return _Demanding(self.width)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return functional.mse_loss(model(batch["x"], some=bool(batch["x"][0, 0] > 0)), batch["y"])

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": self.loss(model, batch)}


class _Residual(nn.Module):
    def __init__(self, channels: int, *, silent: bool) -> None:
        super().__init__()
        self.silent = silent
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x))
        if self.silent:
            self.relu(h)  # what it returns is not needed
        else:
            h = self.relu(h)
        return x * torch.sigmoid(x) + self.second(h) + h


@dataclass(frozen=True)
class Convolving(Regression):
    """Images, with a module that works in place and one that uses its input several times. `silent`: what the first
    returns is ignored. (DeepSpeed's stage 3 does not see such a module in the backward pass.)"""

    per_sample = False
    silent: bool = False

    def build(self) -> nn.Module:
        blocks = [_Residual(7, silent=self.silent), _Residual(7, silent=self.silent)]
        return nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 7, 1), *blocks, nn.Flatten(), nn.Linear(28, 1))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # No bias: the loss does not depend on that of the keys, so that Adam would train it on rounding errors alone.
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class _Transformer(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 32, bias=False)
        self.head.weight = self.embedding.weight
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Language(Task):
    """A transformer with tied weights."""

    columns = ("tokens",)
    per_sample = True

    def build(self) -> nn.Module:
        return _Transformer()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens = batch["tokens"]
        return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


class HuggingFace(Task):
    """A model that says itself how to checkpoint activations, and ties its weights its own way."""

    columns = ("tokens",)
    per_sample = True

    def build(self) -> nn.Module:
        from transformers import AutoModelForCausalLM, LlamaConfig

        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=True,
        )
        return AutoModelForCausalLM.from_config(config)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(input_ids=batch["tokens"], labels=batch["tokens"], use_cache=False).loss


@dataclass(frozen=True)
class Failing(Regression):
    """Does something wrong from a certain call on."""

    what: str = "nan"

    def loss(self, model: nn.Module, batch: Batch) -> Any:
        good = super().loss(model, batch)
        wrong = {
            "nan": lambda: good * float("nan"),
            "vector": lambda: functional.mse_loss(model(batch["x"]), batch["y"], reduction="none"),
            "number": lambda: good.item(),
            "detached": lambda: good.detach(),
            "integer": lambda: good.detach().long(),
            "raises": lambda: batch["no such column"],
        }
        return wrong[self.what]() if self.what in wrong and bool(batch["x"][0, 0] < 1e9) else good
