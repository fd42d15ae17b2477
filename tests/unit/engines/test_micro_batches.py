from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.engines.micro_batches import MicroBatch, even_bounds, plan
from shoal.membership.view import View

pytestmark = pytest.mark.unit


@st.composite
def divisions(draw: st.DrawFn) -> dict[str, object]:
    shards = draw(st.integers(1, 64))
    shard_size = draw(st.integers(1, 16))
    inner = draw(st.sets(st.integers(1, shards - 1))) if shards > 1 else set()
    return {
        "bounds": (0, *sorted(inner), shards),
        "merge": draw(st.booleans()),
        "shard_size": shard_size,
        "micro_limit": draw(st.none() | st.integers(shard_size, 20 * shard_size)),
        "equal": draw(st.booleans()),
    }


@given(divisions())
def test_every_shard_counts_once(division: dict) -> None:
    members = [plan(rank=r, **division) for r in range(len(division["bounds"]) - 1)]
    covered = [s for member in members for m in member if m.share for s in range(*m.shards)]
    assert covered == list(range(division["bounds"][-1]))
    assert math.isclose(sum(m.share for member in members for m in member), 1.0, rel_tol=1e-12)


@given(divisions())
def test_limits_hold(division: dict) -> None:
    for rank in range(len(division["bounds"]) - 1):
        widths = [b - a for a, b in (m.shards for m in plan(rank=rank, **division))]
        assert min(widths) >= 1
        if not division["merge"]:
            assert set(widths) == {1}
        elif division["micro_limit"]:
            assert max(widths) * division["shard_size"] <= max(division["micro_limit"], division["shard_size"])
        assert max(widths) - min(widths) <= 1


@given(divisions())
def test_equal_means_equal_and_pads_with_what_is_there(division: dict) -> None:
    members = [plan(rank=r, **division) for r in range(len(division["bounds"]) - 1)]
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
    bounds = division["bounds"]
    view = View(1, tuple(f"w{i}" for i in range(len(bounds) - 1)), bounds)
    for rank, member in enumerate(view.members):
        mine = view.shards(member, bounds[-1])
        micro_batches = [m for m in plan(rank=rank, **division) if m.share]
        assert (micro_batches[0].shards[0], micro_batches[-1].shards[1]) == (mine.start, mine.stop)


@given(st.integers(1, 64), st.data())
def test_an_even_division_is_that_of_a_view_without_cuts(shards: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, shards))
    assert even_bounds(shards, size) == View(1, tuple(f"w{i}" for i in range(size))).bounds(shards)


@pytest.mark.parametrize(
    ("bounds", "rank", "said"),
    [
        ((0, 4, 8), 2, "rank 2 has no place among the 2 members"),
        ((0, 4, 8), -1, "rank -1 has no place"),
        ((0, 4, 4, 8), 0, "every member needs a virtual shard"),
        ((1, 4), 0, "must begin with 0"),
        ((0,), 0, "no place among the 0 members"),
    ],
)
def test_a_member_without_a_shard_is_refused(bounds: tuple[int, ...], rank: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(bounds, rank, merge=False, shard_size=1, micro_limit=None, equal=False)
