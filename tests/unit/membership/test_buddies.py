"""Who keeps whose copies."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.membership.buddies import buddies

pytestmark = pytest.mark.unit


@settings(deadline=None)
@given(nodes=st.lists(st.sampled_from("xyz"), max_size=7), data=st.data())
def test_buddies_are_others_elsewhere_if_possible_and_stay(nodes: list[str], data: st.DataObject) -> None:
    where = {f"w{i}": n for i, n in enumerate(nodes)}
    leaving = set(data.draw(st.lists(st.sampled_from(sorted(where)), unique=True))) if where else set()
    keepers = buddies(tuple(where), where, leaving)
    assert set(keepers) == (set(where) if len(where) > 1 else set())
    for owner, buddy in keepers.items():
        others = [m for m in where if m != owner and m not in leaving] or [m for m in where if m != owner]
        assert buddy in others
        if any(where[m] != where[owner] for m in others):
            assert where[buddy] != where[owner]


def test_members_on_different_nodes_form_a_ring() -> None:
    assert buddies("abcd", {m: m for m in "abcd"}) == {"a": "b", "b": "c", "c": "d", "d": "a"}
    assert buddies("abcd", dict.fromkeys("abcd", "here")) == {"a": "b", "b": "c", "c": "d", "d": "a"}


def test_no_buddy_keeps_more_than_it_must() -> None:
    assert buddies("abcd", {"a": "x", "b": "x", "c": "y", "d": "y"}) == {"a": "c", "b": "d", "c": "a", "d": "b"}


def as_defined(members: Sequence[str], nodes: Mapping[str, str], leaving: Collection[str]) -> dict[str, str]:
    """The definition, looking at every pair."""
    keepers: dict[str, str] = {}
    load = dict.fromkeys(members, 0)
    for i, owner in enumerate(members):
        ring = [*members[i + 1 :], *members[:i]]
        if ring:
            keepers[owner] = min(
                ring, key=lambda m: (m in leaving, nodes.get(m) == nodes.get(owner), load[m], ring.index(m))
            )
            load[keepers[owner]] += 1
    return keepers


@settings(deadline=None, max_examples=300)
@given(nodes=st.lists(st.sampled_from("wxyz"), max_size=14), data=st.data())
def test_they_are_those_of_the_definition(nodes: list[str], data: st.DataObject) -> None:
    where = {f"w{i}": n for i, n in enumerate(nodes) if n != "w"}  # of some the node is not known
    members = [f"w{i}" for i in range(len(nodes))]
    leaving = set(data.draw(st.lists(st.sampled_from(members), unique=True))) if members else set()
    assert buddies(members, where, leaving) == as_defined(members, where, leaving)


def test_thousands_are_divided_at_once() -> None:
    members = [f"w{i}" for i in range(4000)]
    for per_node in (1, 8, 2000, 3999):
        begun = time.process_time()
        buddies(members, {m: str(i // per_node) for i, m in enumerate(members)})
        assert time.process_time() - begun < 3.0
