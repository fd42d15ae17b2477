"""Two small image classifiers in plain torch."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Images [n, c, h, w] -> logits [n, classes], through `layers` hidden layers."""

    def __init__(self, *, pixels: int, classes: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [pixels, *[width] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer in self.layers:
            x = self.dropout(F.gelu(layer(x)))
        return self.head(x)


class CNN(nn.Module):
    """Images [n, c, h, w] -> logits [n, classes]: residual 3x3 blocks, then the mean over all places.

    Group norm, not batch norm: an image's result does not depend on its neighbours in the batch.
    """

    def __init__(self, *, channels: int, classes: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(width) for _ in range(layers))
        self.norm = nn.GroupNorm(1, width)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for n, block in enumerate(self.blocks):
            x = block(x)
            if n == 0 and min(x.shape[2:]) > 3:
                x = F.max_pool2d(x, 2)
        return self.head(self.dropout(self.norm(x).mean((2, 3))))


class ConvBlock(nn.Module):
    """x [n, width, h, w] -> the same shape: norm, convolution and GELU around a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.convolution = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(self.convolution(self.norm(x)))
