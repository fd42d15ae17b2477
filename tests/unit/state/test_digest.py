"""A state's digest does not depend on how the state is cut, and on nothing but the state."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError
from shoal.state import digest
from shoal.state.digest import shards_digest, state_digest
from shoal.state.layout import Extent, divide
from shoal.state.reader import CheckpointReader
from tests.support.states import SIZES, full_state, save, shard_of

pytestmark = pytest.mark.unit


def parts(state, size, step=3):
    return [shard_of(state, divide(SIZES, rank, size), step) for rank in range(size)]


@given(size=st.integers(1, 8), chunk=st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_files_and_shards_of_any_number_have_one_digest(tmp_path_factory, size, chunk):
    state = full_state(1)
    uri = save(tmp_path_factory.mktemp("digest"), 3, state, size=size, metrics={"loss": size})
    with pytest.MonkeyPatch.context() as patch, CheckpointReader(uri) as reader:
        patch.setattr(digest, "CHUNK", chunk)
        assert (
            state_digest(reader)
            == shards_digest(parts(state, 9 - size), SIZES)
            == shards_digest(parts(state, 1), SIZES)
        )


def test_the_order_of_parameters_in_the_model_does_not_matter():
    state = full_state(1)
    backwards = [shard_of(state, divide(SIZES[::-1], rank, 3), 3) for rank in (2, 0, 1)]
    assert shards_digest(backwards, SIZES[::-1]) == shards_digest(parts(state, 2), SIZES)


@pytest.mark.parametrize("what", ["element", "sign of zero", "moment", "buffer", "scalar", "key"])
def test_any_change_changes_it(what):
    state = full_state(1)
    state["param"]["head.bias"][3] = 0.0
    before = shards_digest(parts(state, 2), SIZES)
    changed = parts(state, 2)
    first, last = changed
    if what == "element":
        first.tensors["param"][5] = first.tensors["param"][5].nextafter(torch.tensor(9.0))
    elif what == "sign of zero":
        last.tensors["param"][-4] = -0.0
    elif what == "moment":
        last.tensors["exp_avg_sq"][0] += 1
    elif what == "buffer":
        first.buffers["norm.mean"] = first.buffers["norm.mean"].flip(0)
    elif what == "scalar":
        changed = [dataclasses.replace(s, scalars={"optimizer_step": 4}) for s in changed]
    else:
        for shard in changed:
            shard.tensors["max_exp_avg_sq"] = shard.tensors.pop("exp_avg_sq")
    assert shards_digest(changed, SIZES) != before


def test_a_shard_that_is_missing_is_named():
    with pytest.raises(CheckpointError, match=r"nobody has embed.weight\[0:12\], "):
        shards_digest(parts(full_state(), 2)[1:], SIZES)


def test_a_part_of_no_elements_is_no_part():
    state = full_state(2)
    empty = shard_of(state, [Extent("head.bias", 2, 0)], 3)
    assert shards_digest([*parts(state, 2), empty], SIZES) == shards_digest(parts(state, 2), SIZES)
