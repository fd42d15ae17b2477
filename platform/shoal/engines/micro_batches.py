"""How a member's virtual shards are grouped into micro-batches. Pure arithmetic; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Virtual shards [a, b) in one forward and backward pass."""

    shards: tuple[int, int]
    share: float
    """What its mean gradient counts in the global batch: (b - a) / V, or 0 for padding, which repeats another one."""


def even_bounds(virtual_shards: int, size: int) -> tuple[int, ...]:
    """Where the virtual shards of each of `size` members begin, and where the last one's end, in an even division."""
    return tuple(rank * virtual_shards // size for rank in range(size + 1))


def plan(
    bounds: Sequence[int],
    rank: int,
    *,
    merge: bool,
    shard_size: int,
    micro_limit: int | None,
    equal: bool,
) -> tuple[MicroBatch, ...]:
    """The micro-batches of member `rank`, in shard order. Over all members the shares add up to 1.

    `bounds`: member r has the virtual shards [bounds[r], bounds[r + 1]); the first bound is 0, the last one their
    number. `merge`: virtual shards may share a pass; then as many do as `micro_limit` samples allow (None: all of
    them), in parts that differ by at most one shard. `equal`: every member gets the same number of micro-batches; the
    shorter ones are padded with share-0 repeats of their last. Raises ValueError if a member would get no shard.
    """
    ranges = list(pairwise(bounds))
    if bounds[0] != 0 or any(a >= b for a, b in ranges):
        raise ValueError(f"bounds {tuple(bounds)} must begin with 0 and rise: every member needs a virtual shard")
    if not 0 <= rank < len(ranges):
        raise ValueError(f"rank {rank} has no place among the {len(ranges)} members of bounds {tuple(bounds)}")
    virtual_shards = bounds[-1]
    together = 1 if not merge else virtual_shards if micro_limit is None else max(1, micro_limit // shard_size)
    first, last = ranges[rank]
    count = _count(last - first, together)
    cuts = [first + (last - first) * i // count for i in range(count + 1)]
    parts = [MicroBatch((a, b), (b - a) / virtual_shards) for a, b in pairwise(cuts)]
    if equal:
        most = max(_count(b - a, together) for a, b in ranges)
        parts += [MicroBatch(parts[-1].shards, 0.0)] * (most - count)
    return tuple(parts)


def _count(shards: int, together: int) -> int:
    return -(-shards // together)
