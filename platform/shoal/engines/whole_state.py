"""State that every member holds whole: copied to the host in parts, and taken over in parts that are then shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist

from shoal.engines.protocol import ReadState
from shoal.errors import CheckpointError
from shoal.state.layout import Extent, divide, offsets

BUCKET = 1 << 24
"""Elements that are moved at a time while a state is taken over: 64 MB beside the model."""

Table = Sequence[tuple[str, int]]
"""(parameter name, number of elements), in the model's order."""


def pack(
    extents: Sequence[Extent], piece: Callable[[Extent], torch.Tensor | None], device: torch.device
) -> torch.Tensor:
    """The elements of `extents` one after another, fp32, on the host. `piece` gives the live elements of one extent, in
    any floating-point type; None stands for zeros. The caller must synchronize with `device`."""
    out = torch.empty(sum(e.count for e in extents), dtype=torch.float32, pin_memory=device.type == "cuda")
    for extent, at in zip(extents, offsets(extents), strict=True):
        here, source = out[at : at + extent.count], piece(extent)
        if source is None:
            here.zero_()
        else:
            here.copy_(source, non_blocking=True)
    return out


def slice_of(tensor: torch.Tensor, extent: Extent) -> torch.Tensor:
    """The elements of `extent` in a whole parameter, or vector of its shape, in row-major order."""
    return tensor.detach().reshape(-1)[extent.start : extent.stop]


@torch.no_grad()
def take_over(
    read: ReadState, key: str, targets: dict[str, torch.Tensor], rank: int, size: int, device: torch.device
) -> None:
    """Write `key` of the whole state into `targets` (collective).

    Each member reads its even part and the parts are gathered, so that storage is read once, not once per member.
    """
    table = [(name, target.numel()) for name, target in targets.items()]
    for bucket in _buckets(table):
        mine = read(key, divide(bucket, rank, size)).to(device)
        flat = _gather(mine, sum(n for _, n in bucket), size) if size > 1 else mine
        for (name, _), values in zip(bucket, flat.split([n for _, n in bucket]), strict=True):
            targets[name].copy_(values.view(targets[name].shape))


def take_over_buffers(targets: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> None:
    """Write a state's buffers. Raises CheckpointError if it has others than the model."""
    if targets.keys() != given.keys():
        raise CheckpointError(
            f"the state's buffers are not the model's: missing {sorted(targets.keys() - given.keys())}, unknown "
            f"{sorted(given.keys() - targets.keys())}; it was written by another model"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(given[name])


def _buckets(table: Table) -> Iterator[list[tuple[str, int]]]:
    bucket: list[tuple[str, int]] = []
    held = 0
    for name, count in table:
        if bucket and held + count > BUCKET:
            yield bucket
            bucket, held = [], 0
        bucket.append((name, count))
        held += count
    if bucket:
        yield bucket


def _gather(mine: torch.Tensor, total: int, size: int) -> torch.Tensor:
    """The parts of all members one after another. Parts as `divide` cuts them: sizes differ by at most one element."""
    counts = [(r + 1) * total // size - r * total // size for r in range(size)]
    longest = max(counts)
    padded = torch.nn.functional.pad(mine, (0, longest - mine.numel()))
    everyone = mine.new_empty(size * longest)
    dist.all_gather(list(everyone.split(longest)), padded)
    if longest * size == total:
        return everyone
    return torch.cat([part[:count] for part, count in zip(everyone.split(longest), counts, strict=True)])
