"""Workers that live and do not get on: found by their deadline, named with where they hang, cut out and replaced."""

from __future__ import annotations

import pytest

import shoal
from tests.cluster.faults.conftest import Result, Train
from tests.support.faults import Fault

pytestmark = pytest.mark.cluster

WORKERS = shoal.Workers(min=1, max=3, silence_s=6.0)


@pytest.mark.parametrize(
    ("engine", "how", "phase", "seen"),
    [
        ("replicated", "SIGSTOP", "backward", "did not speak"),
        ("zero2", "SIGSTOP", "update", "did not speak"),
        ("zero3", "SIGSTOP", "forward", "did not speak"),
        ("replicated", "hold", "forward", "did not speak"),
        ("replicated", "block", "read", "made no progress"),
        ("zero1", "block", "read", "made no progress"),
    ],
)
def test_a_hang_is_found_named_and_cut_out(
    train: Train, undisturbed: Result, engine: str, how: str, phase: str, seen: str
) -> None:
    result = train(engine, Fault(how, 1, 20, phase), workers=WORKERS)  # type: ignore[arg-type]
    assert result.losses == undisturbed.losses
    assert result.state == undisturbed.state
    first = result.entries("view")[0]["members"][1]["id"]
    said = result.heard.said("hang")
    assert f"worker {first} is cut out" in said
    assert seen in said
    assert result.entries("change")[0]["what"] == "hang"
    assert result.entries("change")[0]["members"] == [first], "nobody else is blamed"


def test_a_lost_connection_costs_nobody(train: Train, undisturbed: Result) -> None:
    result = train("replicated", Fault("cut", 1, 20, "backward"))
    assert result.losses == undisturbed.losses
    assert result.state == undisturbed.state
    first, second, *_ = result.entries("view")
    assert [m["id"] for m in second["members"]] == [m["id"] for m in first["members"]]
