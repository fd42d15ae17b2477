from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.randomness import draws, key, positions, seed_build, seed_shard

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def draw() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_a_stream_depends_on_its_key_alone() -> None:
    seed_shard(1, 2, 3)
    first = draw()
    torch.rand(1000)
    seed_shard(9, 9, 9)
    seed_shard(1, 2, 3)
    assert draw() == first


def test_streams_differ_in_every_part_of_the_key() -> None:
    seen = set()
    for seed in range(4):
        for step in range(1, 5):
            for shard in range(4):
                seed_shard(seed, step, shard)
                seen.add(draw())
        seed_build(seed)
        seen.add(draw())
    assert len(seen) == 4 * 4 * 4 + 4


def test_the_hash_never_changes() -> None:
    """Runs that are resumed with a newer version must go on with the same random numbers."""
    assert key(0, 1, 0) == 0xF960C30E61631370
    assert key(3, 50, 7) == 0x9A1B797B9318C8F5


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40), st.integers(0, 2**20))
def test_any_seed_works(seed: int, step: int, shard: int) -> None:
    assert 0 <= key(seed, step, shard) < 2**64
    seed_shard(seed, step, shard)


@pytest.mark.parametrize("use", [lambda: torch.rand(1), random.random, np.random.rand])
def test_drawing_is_noticed(use: object) -> None:
    before = positions(CPU)
    assert not draws(before, positions(CPU))
    use()  # type: ignore[operator]
    assert draws(before, positions(CPU))
