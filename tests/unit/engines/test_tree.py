from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.tree import Node, cover, halves, total

pytestmark = pytest.mark.unit


@st.composite
def views(draw: st.DrawFn) -> tuple[int, ...]:
    """Bounds of a division of up to 64 shards among members."""
    shards = draw(st.integers(1, 64))
    inner = draw(st.sets(st.integers(1, shards - 1))) if shards > 1 else set()
    return (0, *sorted(inner), shards)


def tree(root: Node) -> set[Node]:
    a, b = root
    return {root} if b - a == 1 else {root, *tree((a, (a + b) // 2)), *tree(((a + b) // 2, b))}


@given(views())
def test_a_cover_is_exact_minimal_and_made_of_nodes(bounds: tuple[int, ...]) -> None:
    root = (0, bounds[-1])
    joins = halves(root)
    for low, high in pairwise(bounds):
        nodes = cover(low, high, root)
        assert [s for node in nodes for s in range(*node)] == list(range(low, high))
        assert set(nodes) <= tree(root)
        assert not any(pair in joins for pair in pairwise(nodes)), "two halves are given as their parent"


@given(views(), st.integers(0, 2**32 - 1))
def test_the_sum_does_not_depend_on_who_holds_what(bounds: tuple[int, ...], seed: int) -> None:
    root = (0, bounds[-1])
    values = np.random.default_rng(seed).standard_normal(bounds[-1]).astype(np.float32)
    leaves = {(i, i + 1): v for i, v in enumerate(values)}
    held = {node: total(leaves, node, np.add) for low, high in pairwise(bounds) for node in cover(low, high, root)}
    assert total(held, root, np.add) == total(leaves, root, np.add)


@given(views())
def test_joining_halves_as_they_come_ends_in_the_cover(bounds: tuple[int, ...]) -> None:
    """What a member does as its shards are computed, one after another."""
    root = (0, bounds[-1])
    joins = halves(root)
    for low, high in pairwise(bounds):
        stack: list[Node] = []
        for shard in range(low, high):
            stack.append((shard, shard + 1))
            while len(stack) > 1 and (stack[-2], stack[-1]) in joins:
                stack[-2:] = [joins[stack[-2], stack[-1]]]
        assert tuple(stack) == cover(low, high, root)


def test_the_tree_of_eight_is_the_one_everybody_thinks_of() -> None:
    said = total({(i, i + 1): str(i) for i in range(8)}, (0, 8), lambda a, b: f"({a}+{b})")
    assert said == "(((0+1)+(2+3))+((4+5)+(6+7)))"
    assert total({(i, i + 1): str(i) for i in range(5)}, (0, 5), lambda a, b: f"({a}+{b})") == "((0+1)+(2+(3+4)))"


def test_a_hole_is_an_error() -> None:
    with pytest.raises(KeyError, match="shard 1"):
        total({(0, 1): 1.0, (2, 4): 2.0}, (0, 4), lambda a, b: a + b)


def test_adding_one_by_one_is_another_sum() -> None:
    values = [np.float32(v) for v in (1e8, 1.0, -1e8, 1.0)]
    parts = {(i, i + 1): v for i, v in enumerate(values)}
    assert total(parts, (0, 4), np.add) != reduce(np.add, values)
