"""The order in which a step's virtual shards are added: a binary tree that depends on their number alone. No torch.

A node [a, b) is the sum of its halves [a, m) and [m, b), m = (a + b) // 2; a leaf is one shard. Floating-point addition
rounds, so the grouping decides the bits. Here the grouping is the same whoever holds which shards: a member adds up the
nodes that lie inside its range, and whoever needs the sum of all adds those together, in the same tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

Node = tuple[int, int]
"""The virtual shards [a, b)."""

T = TypeVar("T")


def cover(low: int, high: int, root: Node) -> tuple[Node, ...]:
    """The fewest nodes of the tree below `root` that together are the shards [low, high), in shard order."""
    a, b = root
    if low >= b or high <= a:
        return ()
    if low <= a and b <= high:
        return (root,)
    middle = (a + b) // 2
    return (*cover(low, high, (a, middle)), *cover(low, high, (middle, b)))


def halves(root: Node) -> dict[tuple[Node, Node], Node]:
    """(left half, right half) -> their parent, for every inner node of the tree below `root`."""
    a, b = root
    if b - a == 1:
        return {}
    left, right = (a, (a + b) // 2), ((a + b) // 2, b)
    return {(left, right): root, **halves(left), **halves(right)}


def total(parts: Mapping[Node, T], root: Node, add: Callable[[T, T], T]) -> T:
    """`root` as the sum of `parts`, which must cover it with nodes of its tree. Raises KeyError if they do not."""
    if root in parts:
        return parts[root]
    a, b = root
    if b - a == 1:
        raise KeyError(f"nothing covers virtual shard {a}")
    middle = (a + b) // 2
    return add(total(parts, (a, middle), add), total(parts, (middle, b), add))
