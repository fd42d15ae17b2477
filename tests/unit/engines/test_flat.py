from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.engines.flat import ALIGN, BLOCK, lay_out
from shoal.engines.reduction import TreeReduction, block_sums, halve

pytestmark = pytest.mark.unit

shapes = st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(shapes, min_size=1, max_size=2))
def test_every_parameter_has_its_own_aligned_place(groups: list[list[tuple[int, ...]]]) -> None:
    named = [[(f"{g}.{i}", shape) for i, shape in enumerate(group)] for g, group in enumerate(groups)]
    layout = lay_out(named)
    places = sorted((slot.start, slot.stop) for slot in layout.slots.values())
    assert all(a[1] <= b[0] for a, b in pairwise(places))
    assert all(start % ALIGN == 0 for start, _ in places)
    assert layout.total % BLOCK == 0
    assert places[-1][1] <= layout.total
    for group, (start, stop) in zip(named, layout.sections, strict=True):
        assert stop % ALIGN == 0
        assert all(start <= layout.slots[name].start and layout.slots[name].stop <= stop for name, _ in group)
    flat = layout.zeros(torch.device("cpu"))
    for view in layout.views(flat).values():
        view += 1
    assert flat.sum() == sum(slot.count for slot in layout.slots.values())
    assert flat.max() == 1


def test_sums_of_squares_are_right_and_depend_on_their_block_alone() -> None:
    vector = torch.randn(5 * BLOCK, generator=torch.Generator().manual_seed(0))
    sums = block_sums(vector)
    assert torch.allclose(sums.double(), vector.double().view(5, BLOCK).square().sum(1), rtol=1e-6)
    for i in range(5):
        moved = torch.cat([torch.zeros(3), vector[i * BLOCK : (i + 1) * BLOCK]])[3:]
        assert torch.equal(block_sums(moved), sums[i : i + 1])


def test_halving_is_the_tree_of_pairs() -> None:
    values = [0.1, 1e8, -0.3, 7.0, 1e-8, 3.0, -1e8, 0.5]
    a, b, c, d, e, f, g, h = (torch.tensor(v) for v in values)
    right = ((a + e) + (c + g)) + ((b + f) + (d + h))
    assert torch.equal(halve(torch.tensor(values)), right)


@pytest.mark.parametrize("bounds", [(0, 4, 8), (0, 1, 2, 3, 8), (0, 1, 2, 3, 4, 5, 6, 7, 8)])
def test_chunks_are_whole_blocks_and_cover_everything(bounds: tuple[int, ...]) -> None:
    size, total = len(bounds) - 1, 5 * BLOCK
    reductions = [TreeReduction(r, bounds, total, [[(0, total)]] * size, torch.device("cpu")) for r in range(size)]
    lengths = [reductions[0].chunk_length(r) for r in range(size)]
    assert sum(lengths) == total
    assert all(length % BLOCK == 0 for length in lengths)
    assert max(lengths) - min(lengths) <= BLOCK
