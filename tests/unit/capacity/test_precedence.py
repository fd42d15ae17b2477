"""Who gives way to whom: the rules, and that no cluster and no set of runs can break them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.capacity.fits import Need, Node, room
from shoal.capacity.precedence import Claim, Holding, Lack, heed, precedence

pytestmark = pytest.mark.unit


def need(cpus: float = 1.0, **labels: str) -> Need:
    return Need((("CPU", cpus),), tuple(labels.items()))


def node(name: str, cpus: float, free: float = 0.0, **labels: str) -> Node:
    return Node(name, {"CPU": cpus}, {"CPU": free}, labels)


def claim(
    run: str,
    priority: int = 0,
    *on: str,
    lacks: int = 0,
    vital: int = 0,
    least: int = 1,
    since: float = 0,
    cpus: float = 1,
) -> Claim:
    holds = tuple(Holding(f"w{i}", where) for i, where in enumerate(on))
    asked = tuple(lack for lack in (Lack(need(cpus), vital, True), Lack(need(cpus), lacks, False)) if lack.count)
    return Claim(
        run=run,
        priority=priority,
        since=since,
        begun=bool(holds),
        least=least,
        need=need(cpus),
        holds=holds,
        lacks=asked,
    )


def given_up(nodes: list[Node], *claims: Claim) -> dict[str, tuple[str, ...]]:
    return {run: way.workers for run, way in precedence(nodes, claims).items() if way.workers}


def test_who_lacks_nothing_disturbs_nobody() -> None:
    assert precedence([node("n", 2)], [claim("a", 5, "n"), claim("b", 0, "n")]) == {}


def test_a_higher_run_takes_the_newest_workers_of_a_lower_one_down_to_its_least() -> None:
    low = claim("low", 0, "n", "n", "n", "n", least=2)
    assert given_up([node("n", 4)], low, claim("high", 1, lacks=1)) == {"low": ("w3",)}
    assert given_up([node("n", 4)], low, claim("high", 1, lacks=4)) == {"low": ("w3", "w2")}
    assert given_up([node("n", 4)], low, claim("high", 1, vital=3)) == {"low": ("w3", "w2", "w1")}, "or it cannot start"


def test_nobody_is_stopped_for_a_run_that_could_not_run_all_the_same() -> None:
    low = claim("low", 0, "n", "n", least=2)
    assert precedence([node("n", 2)], [low, claim("high", 1, vital=3, least=3)]) == {}
    assert given_up([node("n", 2)], low, claim("high", 1, vital=2, least=2)) == {"low": ("w1", "w0")}


def test_free_room_comes_first_and_is_kept_for_the_higher_run() -> None:
    low = claim("low", 0, "n", "n", "n", lacks=1)
    found = precedence([node("n", 4, free=1)], [low, claim("high", 1, lacks=1)])
    assert found["low"].workers == (), "there is room"
    assert found["low"].run == "high", "but the lower one does not ask for it"


def test_room_that_is_coming_counts() -> None:
    going = replace(claim("low", 0, "n", "n"), holds=(Holding("w0", "n"), Holding("w1", "n", leaving=True)))
    assert given_up([node("n", 2)], going, claim("high", 1, lacks=1)) == {}


def test_runs_of_one_priority_leave_each_other_alone() -> None:
    assert precedence([node("n", 2)], [claim("a", 1, "n", "n"), claim("b", 1, vital=2, least=2)]) == {}


def test_two_that_both_have_half_of_what_they_need_to_begin_do_not_wait_for_ever() -> None:
    early = replace(claim("early", 0, "n", vital=1, least=2, since=1), begun=False)
    late = replace(claim("late", 0, "n", vital=1, least=2, since=2), begun=False)
    assert given_up([node("n", 2)], late, early) == {"late": ("w0",)}
    assert given_up([node("n", 2)], replace(late, begun=True), early) == {}, "it may hold what it has learned"


def test_the_lowest_priority_and_what_nobody_needs_go_first() -> None:
    nodes = [node("n", 3)]
    claims = [claim("a", 0, "n", least=1), claim("b", 1, "n", "n", least=1), claim("high", 2, vital=1)]
    assert given_up(nodes, *claims) == {"b": ("w1",)}, "a would have to stop"


def test_large_workers_take_small_ones_of_one_node_and_as_few_as_will_do() -> None:
    nodes = [node("m", 4, free=1), node("n", 4)]
    low = claim("low", 0, "m", "n", "n", "m", "n", "m", "n")
    found = given_up(nodes, low, claim("high", 1, lacks=1, cpus=3))
    assert found == {"low": ("w5", "w3")}, "on m one of three places is free already"


def test_labels_say_on_which_nodes_room_is_of_use() -> None:
    nodes = [node("m", 1, market="spot"), node("n", 1, market="on-demand")]
    low, high = claim("low", 0, "m", "n", least=0), claim("high", 1)
    lack = Lack(need(market="!spot"), 1, vital=False)
    assert given_up(nodes, low, replace(high, lacks=(lack,))) == {"low": ("w1",)}
    assert given_up(nodes, low, replace(high, lacks=(replace(lack, need=need(market="tpu")),))) == {}


def test_who_is_asked_knows_better() -> None:
    own = claim("low", 0, "n", "n", least=1)
    high = claim("high", 1, lacks=2)
    assert heed(own, high, ["w1", "gone"]) == ("w1",)
    assert heed(own, high, ["w0", "w1"]) == (), "that would stop it"
    assert heed(own, claim("high", 1, vital=1), ["w0", "w1"]) == ("w0", "w1")
    assert heed(own, claim("peer", 0, vital=1), ["w1"]) == ()


# Any cluster ---------------------------------------------------------------------------------------------------------


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Node], list[Claim]]:
    """Nodes, and runs with workers on them, all within what the nodes have."""
    nodes = [
        node(f"n{i}", draw(st.integers(1, 8)), m=draw(st.sampled_from("ab"))) for i in range(draw(st.integers(1, 4)))
    ]
    free = {n.id: n.has["CPU"] for n in nodes}
    claims = []
    for i in range(draw(st.integers(1, 4))):
        takes = draw(st.sampled_from([0.5, 1, 2, 4]))
        wanted = need(takes, **draw(st.sampled_from([{}, {}, {"m": "a"}, {"m": "!a"}])))
        holds: list[Holding] = []
        for n in draw(st.lists(st.sampled_from(nodes), max_size=5)):
            if free[n.id] >= takes and room(n, wanted, empty=True):
                free[n.id] -= takes
                holds.append(Holding(f"w{len(holds)}", n.id, leaving=draw(st.integers(0, 9)) == 0))
        least = draw(st.integers(1, 3))
        have = sum(not h.leaving for h in holds)
        lacks = [Lack(wanted, max(0, least - have), True), Lack(wanted, draw(st.integers(0, 3)), False)]
        claims.append(
            Claim(
                run=f"r{i}", priority=draw(st.integers(0, 2)), since=float(i),
                begun=have >= least or draw(st.booleans()),
                least=least, need=wanted, holds=tuple(holds), lacks=tuple(x for x in lacks if x.count),
            )
        )  # fmt: skip
    return [replace(n, free={"CPU": free[n.id]}) for n in nodes], claims


def vital(one: Claim) -> bool:
    return any(lack.vital for lack in one.lacks)


@settings(deadline=None)
@given(clusters())
def test_the_rules_hold(cluster: tuple[list[Node], list[Claim]]) -> None:
    nodes, claims = cluster
    found, known = precedence(nodes, claims), {c.run: c for c in claims}
    assert found == precedence(nodes, list(reversed(claims))), "all see the same picture and come to the same"
    highest = max((c.priority for c in claims if c.lacks), default=0)
    for run, way in found.items():
        own, asker = known[run], known[way.run]
        staying = {h.worker for h in own.holds if not h.leaving}
        assert set(way.workers) <= staying
        assert own.priority < highest or any(c.lacks and c.priority == own.priority and not own.begun for c in claims)
        assert asker.lacks
        if len(staying) - len(way.workers) < own.least and way.workers:
            assert any(vital(c) and c.priority >= own.priority for c in claims if c is not own)


@settings(deadline=None)
@given(clusters())
def test_carried_out_it_comes_to_rest_and_nobody_gets_back_and_forth(cluster: tuple[list[Node], list[Claim]]) -> None:
    nodes, claims = cluster
    moved = 0
    asked_at_first = sum(lack.count for c in claims for lack in c.lacks)
    for _ in range(40):
        ways = precedence(nodes, claims)
        gone = {run: set(way.workers) for run, way in ways.items() if way.workers}
        moved += sum(map(len, gone.values()))
        nodes, claims, placed = after(nodes, claims, gone)
        if not gone and not placed:
            break
    else:
        pytest.fail("they never come to rest")
    assert moved <= 8 * (asked_at_first + 1), "a large worker may take the places of eight small ones"
    top = max(claims, key=lambda c: (c.priority, -c.since))
    for lack in top.lacks:
        for n in nodes:
            assert not room(n, lack.need, empty=False), "room is left for the one that comes first"


def after(nodes: list[Node], claims: list[Claim], gone: dict[str, set[str]]) -> tuple[list[Node], list[Claim], int]:
    """A moment later: those that were asked have left and are lacked, and what is free went to who comes first."""
    free = {n.id: n.free["CPU"] for n in nodes}
    left: list[Claim] = []
    for c in claims:
        size = dict(c.need.amounts)["CPU"]
        kept = tuple(h for h in c.holds if not h.leaving and h.worker not in gone.get(c.run, ()))
        for h in c.holds:
            if h not in kept:
                free[h.node] += size
        lost = len(gone.get(c.run, ()))
        lacks = [(x.count, x.vital) for x in c.lacks] + [(lost, False)]
        total = sum(count for count, _ in lacks)
        must = min(total, max(0, c.least - len(kept)))
        split = (Lack(c.need, must, True), Lack(c.need, total - must, False))
        left.append(replace(c, holds=kept, lacks=tuple(x for x in split if x.count)))
    placed, done = 0, []
    for c in sorted(left, key=lambda c: (-c.priority, c.since)):
        size, holds, total = dict(c.need.amounts)["CPU"], list(c.holds), sum(x.count for x in c.lacks)
        for n in nodes:
            while total and room(replace(n, free={"CPU": free[n.id]}), c.need, empty=False):
                free[n.id] -= size
                holds.append(Holding(f"x{len(holds)}-{placed}", n.id))
                total, placed = total - 1, placed + 1
        must = min(total, max(0, c.least - len(holds)))
        split = (Lack(c.need, must, True), Lack(c.need, total - must, False))
        begun = c.begun or len(holds) >= c.least
        done.append(replace(c, holds=tuple(holds), lacks=tuple(x for x in split if x.count), begun=begun))
    return [replace(n, free={"CPU": free[n.id]}) for n in nodes], done, placed
