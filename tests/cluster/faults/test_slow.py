"""A member that has become slower than its peers: reported, given fewer virtual shards, or replaced. Same bits."""

from __future__ import annotations

from typing import Any

import pytest

import shoal
from tests.cluster.faults.conftest import Result, Train, alone
from tests.support.faults import Fault

pytestmark = pytest.mark.cluster

FAULT = Fault("slow", 1, 10, "forward")
LONG = 400


def workers(stragglers: Any) -> shoal.Workers:
    return shoal.Workers(min=3, max=3, stragglers=stragglers)


def blamed(result: Result) -> str:
    """The one member that was called slow; it is the one that was."""
    (entry, *more) = result.entries("straggler")
    slow = result.entries("view")[0]["members"][1]["id"]
    assert not more
    assert entry["member"] == slow
    assert f"worker {slow} has needed" in result.heard.said("warning")
    return slow


def test_it_is_reported(train: Train, undisturbed: Result) -> None:
    result = train("replicated", FAULT, workers=workers("report"))
    assert (result.losses, result.state) == (undisturbed.losses, undisturbed.state)
    blamed(result)
    assert len(result.entries("view")) == 1


@pytest.mark.parametrize("engine", ["replicated", "zero2"])
def test_it_gets_fewer_virtual_shards(train: Train, long_undisturbed: Result, engine: str) -> None:
    result = train(engine, FAULT, workers=workers("rebalance"), budget=shoal.Budget(steps=LONG))
    assert (result.losses, result.state) == (long_undisturbed.losses, long_undisturbed.state)
    slow = blamed(result)
    last = result.entries("view")[-1]
    rank = [m["id"] for m in last["members"]].index(slow)
    sizes = [b - a for a, b in zip(last["cuts"], last["cuts"][1:], strict=False)]
    assert sizes[rank] == min(sizes) < max(sizes)
    assert all(c["steps_redone"] == 0 for c in result.entries("change"))


@pytest.mark.parametrize("engine", ["replicated", "zero1"])
def test_it_is_replaced(train: Train, long_undisturbed: Result, engine: str) -> None:
    result = train(engine, FAULT, workers=workers("replace"), budget=shoal.Budget(steps=LONG))
    assert (result.losses, result.state) == (long_undisturbed.losses, long_undisturbed.state)
    slow = blamed(result)
    assert slow not in [m["id"] for m in result.entries("view")[-1]["members"]]
    assert all(c["steps_redone"] == 0 for c in result.entries("change"))


@pytest.fixture
def long_undisturbed(train: Train) -> Result:
    return alone(train, LONG)
