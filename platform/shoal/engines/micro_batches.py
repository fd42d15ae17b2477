"""How a member's virtual shards are grouped into micro-batches. Pure arithmetic; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Virtual shards [a, b) in one forward and backward pass."""

    shards: tuple[int, int]
    share: float
    """What its mean gradient counts in the global batch: (b - a) / V, or 0 for padding, which repeats another one."""


def plan(
    virtual_shards: int,
    size: int,
    rank: int,
    *,
    merge: bool,
    shard_size: int,
    micro_limit: int | None,
    equal: bool,
) -> tuple[MicroBatch, ...]:
    """The micro-batches of member `rank` of `size`, in shard order. Over all members the shares add up to 1.

    `merge`: virtual shards may share a pass; then as many do as `micro_limit` samples allow (None: all of them), in
    parts that differ by at most one shard. `equal`: every member gets the same number of micro-batches; the shorter
    ones are padded with share-0 repeats of their last. Raises ValueError if a member would get no shard.
    """
    if not 0 <= rank < size <= virtual_shards:
        raise ValueError(f"need 0 <= rank < size <= virtual_shards, got rank={rank}, size={size}, V={virtual_shards}")
    together = 1 if not merge else virtual_shards if micro_limit is None else max(1, micro_limit // shard_size)
    first, last = _range(virtual_shards, size, rank)
    count = _count(last - first, together)
    cuts = [first + (last - first) * i // count for i in range(count + 1)]
    parts = [MicroBatch((a, b), (b - a) / virtual_shards) for a, b in pairwise(cuts)]
    if equal:
        most = max(_count(b - a, together) for a, b in (_range(virtual_shards, size, r) for r in range(size)))
        parts += [MicroBatch(parts[-1].shards, 0.0)] * (most - count)
    return tuple(parts)


def _range(virtual_shards: int, size: int, rank: int) -> tuple[int, int]:
    return rank * virtual_shards // size, (rank + 1) * virtual_shards // size


def _count(shards: int, together: int) -> int:
    return -(-shards // together)
