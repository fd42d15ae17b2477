"""Traces as schedules: the number of workers, the moments, who goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.churn.schedule import TRACES, Action, Change, one_by_one, read_trace, replay, schedule

pytestmark = pytest.mark.unit


def trace(*lines: tuple[float, int]) -> list[Change]:
    """(second, nodes from then on)."""
    changes: list[Change] = []
    nodes = 0
    for at, wanted in lines:
        what = "join" if wanted > nodes else "kill"
        changes += [Change(at, what, f"n{at}-{i}") for i in range(abs(wanted - nodes))]  # type: ignore[arg-type]
        nodes = wanted
    return changes


def test_workers_follow_the_trace_in_less_time() -> None:
    plan = replay("t", trace((0, 16), (60, 32), (120, 17), (180, 8)), workers=4, faster=10)
    assert plan.first == ("slot0", "slot1")
    assert plan.sizes() == [(0, 2), (6, 3), (6, 4), (12, 3), (12, 2), (18, 1), (18, 2), (18, 3), (18, 4)]
    assert plan.length_s == 18


def test_a_change_of_a_few_nodes_among_many_is_none() -> None:
    assert replay("t", trace((0, 32), (10, 31), (20, 32), (30, 29)), workers=4, faster=1).actions == ()


def test_there_is_always_one_worker() -> None:
    plan = replay("t", trace((0, 32), (10, 0), (20, 32)), workers=4, faster=1)
    assert [n for _, n in plan.sizes()] == [4, 3, 2, 1, 2, 3, 4]


def test_old_and_new_ones_go_in_turn_and_no_slot_comes_twice() -> None:
    plan = replay("t", trace((0, 32), (1, 16), (2, 32), (3, 16)), workers=4, faster=1)
    assert [a.slot for a in plan.actions if a.what == "kill"] == ["slot0", "slot2", "slot4", "slot1"]
    joined = [*plan.first, *(a.slot for a in plan.actions if a.what == "join")]
    assert len(set(joined)) == len(joined)


def test_the_real_trace() -> None:
    """What the page says of it."""
    plan = schedule("p3", 4)
    assert len(plan.first) == 2
    changes = [a for a in plan.actions if a.what == "kill" or a.at_s < plan.length_s]
    assert len(changes) == 33
    assert plan.length_s == pytest.approx(68.2)
    assert {n for _, n in plan.sizes()} == {1, 2, 3, 4}
    assert {a.what for a in plan.actions} == {"join", "kill"}


def test_one_by_one_keeps_the_lines() -> None:
    lines = [Change(0, "join", "a"), Change(0, "join", "b"), Change(1, "leave", "a"), Change(2, "join", "c")]
    plan = one_by_one("t", lines)
    assert plan.settled
    assert plan.first == ("a", "b")
    assert plan.actions == (Action(1, "leave", "a"), Action(2, "join", "c"))
    shipped = one_by_one("t", read_trace(TRACES / "one-by-one.csv"))
    assert {a.what for a in shipped.actions} == {"join", "kill", "leave"}
    assert min(n for _, n in shipped.sizes()) >= 1


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("0,add,a\n1,reboot,a\n")
    with pytest.raises(ValueError, match=r"t.csv:2: '1,reboot,a' is not milliseconds,add\|remove\|notice,node"):
        read_trace(path)
