"""Digests of samples: members and audits must agree on every bit of them, for ever."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.digests import shard_digests, step_digest

pytestmark = pytest.mark.unit

SAMPLES = {
    "tokens": np.arange(24, dtype=np.int32).reshape(8, 3),
    "label": np.arange(8, dtype=np.uint8),
    "good": np.arange(8) % 3 == 0,
}


def test_what_is_hashed() -> None:
    first = hashlib.blake2b(digest_size=8)
    for name in ("good", "label", "tokens"):
        part = SAMPLES[name][:2]
        first.update(name.encode() + part.dtype.str.encode() + part.tobytes())
    said = shard_digests(SAMPLES, 4)
    assert len(said) == 4 * 16
    assert said[:16] == first.hexdigest()
    assert step_digest([said]) == hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def test_the_recorded_values_never_change() -> None:
    assert step_digest([shard_digests(SAMPLES, 4)]) == "2a1b7cd187dfc0c9"


@given(cuts=st.sets(st.integers(1, 7)))
def test_it_does_not_matter_who_computed_which_shards(cuts: set[int]) -> None:
    edges = [0, *sorted(cuts), 8]
    parts = [shard_digests({n: c[a:b] for n, c in SAMPLES.items()}, b - a) for a, b in pairwise(edges)]
    assert step_digest(parts) == step_digest([shard_digests(SAMPLES, 8)])


@pytest.mark.parametrize(
    "other",
    [
        {**SAMPLES, "label": SAMPLES["label"].astype(np.int8)},
        {**SAMPLES, "label": SAMPLES["label"][::-1]},
        {**SAMPLES, "tokens": SAMPLES["tokens"] + (SAMPLES["tokens"] == 23)},
        {"Tokens": SAMPLES["tokens"], "label": SAMPLES["label"], "good": SAMPLES["good"]},
        {"tokens": SAMPLES["tokens"], "label": SAMPLES["label"]},
    ],
    ids=["type", "order", "one bit", "name", "fewer columns"],
)
def test_any_difference_shows(other: dict[str, np.ndarray]) -> None:
    assert shard_digests(other, 4) != shard_digests(SAMPLES, 4)


def test_the_layout_in_memory_does_not_matter() -> None:
    strided = {name: np.asfortranarray(np.repeat(c, 2, axis=0))[::2] for name, c in SAMPLES.items()}
    assert not strided["tokens"].flags.c_contiguous
    assert shard_digests(strided, 2) == shard_digests(SAMPLES, 2)


def test_samples_that_cannot_be_divided_are_our_mistake() -> None:
    with pytest.raises(AssertionError, match="8 samples cannot be 3 equal virtual shards"):
        shard_digests(SAMPLES, 3)
