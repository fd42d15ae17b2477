"""All trainable parameters as one vector, laid out by the model alone: the same on every member, in every engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

BLOCK = 4096
"""Elements whose squares are summed together for the norm. A fixed part of what `exact` means: never change it."""
ALIGN = 64
"""Every parameter begins at a multiple of this: 256 bytes, what allocators give and the widest vectors need."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one parameter lies."""

    start: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """The parameters of each optimizer group one after another. The gaps between them hold zeros."""

    slots: dict[str, Slot]
    sections: tuple[tuple[int, int], ...]
    """[start, stop) of each group."""
    total: int
    """A multiple of BLOCK."""

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each parameter's part of a vector, in its shape; shares memory."""
        return {name: flat[slot.start : slot.stop].view(slot.shape) for name, slot in self.slots.items()}

    def zeros(self, device: torch.device) -> torch.Tensor:
        """A new vector."""
        return torch.zeros(self.total, dtype=torch.float32, device=device)


def lay_out(groups: Sequence[Sequence[tuple[str, Sequence[int]]]]) -> FlatLayout:
    """The layout of groups of (parameter name, shape)."""
    slots: dict[str, Slot] = {}
    sections = []
    at = 0
    for group in groups:
        begun = at
        for name, shape in group:
            slots[name] = Slot(at, tuple(shape))
            at = round_up(slots[name].stop, ALIGN)
        sections.append((begun, at))
    return FlatLayout(slots, tuple(sections), round_up(at, BLOCK))


def round_up(count: int, multiple: int) -> int:
    """The next multiple from `count` on."""
    return -(-count // multiple) * multiple
