"""Who gives what to whom: complete, from one giver each, local where possible, even; for any layouts."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import CheckpointError
from shoal.state.exchange_plan import messages, plan_moves
from shoal.state.layout import Extent, divide

pytestmark = pytest.mark.unit


@st.composite
def layouts(draw):
    """A table of parameters and a division of its elements into parts at arbitrary places, in an arbitrary order."""
    table = [(f"p{i}", draw(st.integers(0, 30))) for i in range(draw(st.integers(1, 5)))]
    return table, *(cut_anywhere(draw, table) for _ in range(2))


def cut_anywhere(draw, table):
    extents = []
    for name, n in table:
        bounds = sorted({0, n, *draw(st.lists(st.integers(0, n), max_size=4))})
        extents += [Extent(name, a, b - a) for a, b in itertools.pairwise(bounds)]
    draw(st.randoms(use_true_random=False)).shuffle(extents)
    places = sorted({0, len(extents), *draw(st.lists(st.integers(0, len(extents)), max_size=7))})
    return [extents[a:b] for a, b in itertools.pairwise(places)] or [[]]


def elements(extents):
    """What lies in a packed tensor of these extents: (name, number) of each element, one after another."""
    return [(e.name, i) for e in extents for i in range(e.start, e.stop)]


def carried_out(offers, wants, moves):
    """What each member has after the moves; every place is written exactly once."""
    held = [[elements(shard) for shard in shards] for shards in offers]
    packed = [[None] * len(elements(extents)) for extents in wants]
    for move in moves:
        for i in range(move.size):
            assert packed[move.taker][move.target + i] is None
            packed[move.taker][move.target + i] = held[move.giver][move.shard][move.source + i]
    return packed


@given(layout=layouts(), data=st.data())
@settings(max_examples=300, deadline=None)
def test_everyone_gets_what_it_wants_from_any_layout_to_any_other(layout, data):
    _, before, after = layout
    members = max(len(before), len(after))
    # Some members of the old layout are gone; each part lies with one or more of those who are left.
    keepers = data.draw(st.lists(st.integers(0, members - 1), min_size=1, max_size=3))
    offers = [[] for _ in range(members)]
    for part in before:
        for keeper in data.draw(st.sets(st.sampled_from(keepers), min_size=1)):
            offers[keeper].append(part)
    wants = after + [[]] * (members - len(after))
    moves = plan_moves(offers, wants)
    assert carried_out(offers, wants, moves) == [elements(extents) for extents in wants]
    for move in moves:
        own = {e for shard in offers[move.taker] for e in elements(shard)}
        taken = elements(wants[move.taker])[move.target : move.target + move.size]
        assert move.giver == move.taker or not own & set(taken), "what is here already does not travel"


@given(layout=layouts(), givers=st.integers(1, 7), takers=st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_those_who_have_the_same_give_even_parts(layout, givers, takers):
    table, *_ = layout
    everything = [Extent(name, 0, n) for name, n in table]
    moves = plan_moves([[everything]] * givers + [[]] * takers, [[]] * givers + [everything] * takers)
    loads = Counter(dict.fromkeys(range(givers), 0))
    for move in moves:
        loads[move.giver] += move.size
    assert max(loads.values()) - min(loads.values()) <= takers * len(table)


def test_neighbours_at_both_ends_are_one_move():
    table = [(f"p{i}", 10 + i) for i in range(50)]
    offers = [[divide(table, r, 4)] for r in range(4)]
    wants = [divide(table, r, 3) if r < 3 else () for r in range(4)]
    assert len(plan_moves(offers, wants)) == 6


@given(layout=layouts(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_what_nobody_has_is_named(layout, data):
    table, before, _ = layout
    lost = data.draw(st.sampled_from(before))
    wants = [[Extent(name, 0, n) for name, n in table]]
    offers = [[part for part in before if part is not lost]]
    if not elements(lost):
        plan_moves(offers, wants)
        return
    with pytest.raises(CheckpointError) as caught:
        plan_moves(offers, wants)
    name, number = min(elements(lost), key=lambda e: (int(e[0][1:]), e[1]))
    assert f"nobody has {name}[{number}:" in str(caught.value)
    assert "durable checkpoint" in str(caught.value)


@given(
    seed=st.integers(0, 10**6),
    solo=st.integers(1, 20),
    packed=st.integers(20, 50),
    chunk=st.integers(20, 90),
    keys=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_messages_hold_every_move_once_and_are_bounded(seed, solo, packed, chunk, keys):
    rng = random.Random(seed)
    table = [(f"p{i}", rng.randint(1, 120)) for i in range(8)]
    stripes = [[Extent(name, n * r // 3, n * (r + 1) // 3 - n * r // 3) for name, n in table] for r in range(3)]
    moves = plan_moves([[stripe] for stripe in stripes], [[Extent(n, 0, c) for n, c in table], [], []])
    moves = [m for m in moves if m.giver == 1]
    found = messages({f"k{k}": moves for k in range(keys)}, solo, packed, chunk)
    pieces = [p for message in found for p in message]
    covered = Counter((p.key, p.shard, p.source + i, p.target + i) for p in pieces for i in range(p.size))
    right = {(f"k{k}", m.shard, m.source + i, m.target + i) for k in range(keys) for m in moves for i in range(m.size)}
    assert set(covered) == right
    assert set(covered.values()) == {1}
    assert all(sum(p.size for p in message) <= (packed if len(message) > 1 else chunk) for message in found)
    alone = keys * sum(-(-m.size // chunk) for m in moves if m.size >= solo)
    small = keys * sum(m.size for m in moves if m.size < solo)
    assert len(found) - alone <= 2 * small / packed + 1, "small pieces travel together"
