"""Workers that die: in every phase of a step, in every engine, two at once, during a recovery, all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import shoal
from tests.cluster.faults.conftest import ENGINES, Result, Train, manifest
from tests.support.faults import Fault

pytestmark = pytest.mark.cluster

each_engine = pytest.mark.parametrize("engine", ENGINES)


def same(result: Result, right: Result) -> None:
    """Not a bit differs, neither on the way nor at the end."""
    assert result.losses == right.losses
    assert result.state == right.state


def sources(result: Result) -> list[str]:
    """Where each view's state came from."""
    return [view["source"] for view in result.entries("view")]


def from_memory(result: Result) -> None:
    """No disk was read."""
    assert set(sources(result)[1:]) == {"memory"}


@pytest.mark.parametrize(
    ("engine", "phase"),
    [(engine, phase) for engine in ("replicated", "zero3") for phase in ("forward", "backward", "update", "updated")]
    + [("zero1", "backward"), ("zero2", "update")],
)
def test_a_kill_in_any_phase_of_a_step(train: Train, undisturbed: Result, engine: str, phase: str) -> None:
    result = train(engine, Fault("SIGKILL", 1, 20, phase))  # type: ignore[arg-type]
    same(result, undisturbed)
    (change, *_) = result.entries("change")
    assert change["what"] == "loss"
    # Replicated: at most the step in flight; sharded: at most the steps since the snapshot before.
    assert change["steps_redone"] <= (1 if engine == "replicated" else 3)
    from_memory(result)


@pytest.mark.parametrize("engine", ["zero1", "zero3"])
def test_a_kill_during_a_snapshot(train: Train, undisturbed: Result, engine: str) -> None:
    result = train(engine, Fault("SIGKILL", 1, 19, "snapshot"))
    same(result, undisturbed)
    from_memory(result)


@each_engine
@pytest.mark.parametrize("phase", ["forming", "state"])
def test_a_kill_during_the_recovery_from_another(train: Train, undisturbed: Result, engine: str, phase: str) -> None:
    # Four, whose buddies are the next in the ring: the second to die does not keep the first one's copy.
    first = Fault("SIGKILL", 1, 20, "backward")
    # Replicated survivors move no state among themselves, so there only the forming can be hit.
    second = Fault("SIGKILL", 2, 20, "forming" if engine == "replicated" else phase)  # type: ignore[arg-type]
    result = train(engine, first, second, workers=shoal.Workers(min=1, max=4))
    same(result, undisturbed)
    assert len(result.entries("loss")) == 2
    from_memory(result)


@each_engine
def test_two_at_once(train: Train, undisturbed: Result, engine: str) -> None:
    faults = [Fault("SIGKILL", rank, 20, "backward") for rank in (0, 2)]
    result = train(engine, *faults, workers=shoal.Workers(min=1, max=4))
    same(result, undisturbed)
    from_memory(result)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_a_member_and_its_buddy_at_once_go_back_to_the_checkpoint(
    train: Train, undisturbed: Result, runs: Path, engine: str
) -> None:
    name = f"buddies-{engine}"
    faults = [Fault("SIGKILL", rank, 20, "forward", manifest(runs, name, 8)) for rank in (1, 2)]
    keep = shoal.Checkpoints(every=8, export=False)
    result = train(engine, *faults, workers=shoal.Workers(min=1, max=4), checkpoints=keep, name=name)
    same(result, undisturbed)
    assert sources(result)[1] == "checkpoint"


@pytest.mark.parametrize("engine", ["replicated", "zero2"])
def test_everyone_at_once_goes_back_to_the_checkpoint(
    train: Train, undisturbed: Result, runs: Path, engine: str
) -> None:
    name = f"everyone-{engine}"
    faults = [Fault("SIGKILL", rank, 20, "forward", manifest(runs, name, 8)) for rank in (0, 1)]
    keep = shoal.Checkpoints(every=8, export=False)
    result = train(engine, *faults, workers=shoal.Workers(min=1, max=2), checkpoints=keep, name=name)
    same(result, undisturbed)
    assert sources(result)[1] == "checkpoint"


def test_everyone_before_the_first_checkpoint_begins_again(train: Train, undisturbed: Result) -> None:
    faults = [Fault("SIGKILL", rank, 5, "forward") for rank in (0, 1)]
    result = train("replicated", *faults, workers=shoal.Workers(min=1, max=2))
    same(result, undisturbed)


@each_engine
def test_one_after_another_while_the_run_waits_for_more(train: Train, undisturbed: Result, engine: str) -> None:
    """Below `min` the survivors keep the state and wait; newcomers take it over from them."""
    faults = [Fault("SIGKILL", 1, 15, "backward"), Fault("SIGKILL", 0, 30, "update")]
    result = train(engine, *faults, workers=shoal.Workers(min=2, max=2))
    same(result, undisturbed)
    sizes = [len(view["members"]) for view in result.entries("view")]
    assert sizes == [2, 2, 2]
    from_memory(result)
    # One change or two: the second loss may come before the coordinator has heard that the view went on.
    for what in ("loss", "join"):
        assert sum(len(c["members"]) for c in result.entries("change") if c["what"] == what) == 2
