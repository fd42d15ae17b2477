from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.micro_batches import MicroBatch, plan
from shoal.membership.view import View

pytestmark = pytest.mark.unit


@st.composite
def divisions(draw: st.DrawFn) -> dict[str, object]:
    shards = draw(st.integers(1, 64))
    shard_size = draw(st.integers(1, 16))
    return {
        "virtual_shards": shards,
        "size": draw(st.integers(1, shards)),
        "merge": draw(st.booleans()),
        "shard_size": shard_size,
        "micro_limit": draw(st.none() | st.integers(shard_size, 20 * shard_size)),
        "equal": draw(st.booleans()),
    }


@given(divisions())
def test_every_shard_counts_once(division: dict) -> None:
    members = [plan(rank=r, **division) for r in range(division["size"])]
    covered = [s for member in members for m in member if m.share for s in range(*m.shards)]
    assert covered == list(range(division["virtual_shards"]))
    assert math.isclose(sum(m.share for member in members for m in member), 1.0, rel_tol=1e-12)


@given(divisions())
def test_limits_hold(division: dict) -> None:
    for rank in range(division["size"]):
        widths = [b - a for a, b in (m.shards for m in plan(rank=rank, **division))]
        assert min(widths) >= 1
        if not division["merge"]:
            assert set(widths) == {1}
        elif division["micro_limit"]:
            assert max(widths) * division["shard_size"] <= max(division["micro_limit"], division["shard_size"])
        assert max(widths) - min(widths) <= 1


@given(divisions())
def test_equal_means_equal_and_pads_with_what_is_there(division: dict) -> None:
    members = [plan(rank=r, **division) for r in range(division["size"])]
    if division["equal"]:
        assert len({len(m) for m in members}) == 1
    for member in members:
        real = [m for m in member if m.share]
        padding = member[len(real) :]
        assert member[: len(real)] == tuple(real), "padding comes last"
        assert all(m == MicroBatch(real[-1].shards, 0.0) for m in padding)
        assert division["equal"] or not padding


@given(divisions())
def test_members_get_the_shards_of_their_lease(division: dict) -> None:
    view = View(1, tuple(f"w{i}" for i in range(division["size"])))
    for rank, member in enumerate(view.members):
        mine = view.shards(member, division["virtual_shards"])
        micro_batches = [m for m in plan(rank=rank, **division) if m.share]
        assert (micro_batches[0].shards[0], micro_batches[-1].shards[1]) == (mine.start, mine.stop)


@pytest.mark.parametrize(("size", "rank"), [(3, 3), (0, 0), (9, 0), (2, -1)])
def test_a_member_without_a_shard_is_refused(size: int, rank: int) -> None:
    with pytest.raises(ValueError, match="virtual_shards"):
        plan(8, size, rank, merge=False, shard_size=1, micro_limit=None, equal=False)
