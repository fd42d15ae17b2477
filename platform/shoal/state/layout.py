"""Training state as named, one-dimensional ranges: the same whoever holds it and however it is sharded.

The *logical state* of a run is, for every parameter, a flat fp32 vector (`param`) and the optimizer's vectors of the
same length (`exp_avg`, `exp_avg_sq`, `momentum_buffer`, ...), plus a few scalars. A member holds some *extents* of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """Elements [start, start + count) of the flattened parameter `name`."""

    name: str
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(slots=True)
class Shard:
    """A piece of the logical state: `tensors[key]` is 1-D fp32 and holds the extents' elements one after another.

    Every key covers the same extents. Keys: `param` and the optimizer's state names. On the host, never on a device.
    """

    extents: tuple[Extent, ...]
    tensors: dict[str, torch.Tensor]
    scalars: dict[str, Any] = field(default_factory=dict)
    """JSON values that are equal on all members, for example `{"optimizer_step": 120}`."""
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    """The model's persistent buffers (batch statistics and the like); whole, and equal on all members."""

    def elements(self) -> int:
        return sum(e.count for e in self.extents)


def divide(sizes: Sequence[tuple[str, int]], rank: int, size: int) -> tuple[Extent, ...]:
    """Contiguous even division of all parameters' elements among `size` members: the part of `rank`.

    `sizes` are (parameter name, number of elements) in the model's order. Parts differ by at most one element,
    are disjoint, and cover everything.
    """
    total = sum(n for _, n in sizes)
    low, high = rank * total // size, (rank + 1) * total // size
    out, at = [], 0
    for name, n in sizes:
        a, b = max(low, at), min(high, at + n)
        if a < b:
            out.append(Extent(name, a - at, b - a))
        at += n
    return tuple(out)


def offsets(extents: Iterable[Extent]) -> list[int]:
    """Where each extent begins in a packed tensor."""
    out, at = [], 0
    for extent in extents:
        out.append(at)
        at += extent.count
    return out
