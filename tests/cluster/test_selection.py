"""Training on what a step chooses by loss: the same bits on any number of workers, through kills, stop and resume."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.audit.run import audit_run
from shoal.coordinator.status import Outcome
from shoal.errors import ConfigError, DataError
from shoal.job import Mixup
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from shoal.tasks import ImageClassifier
from tests.support.faults import Fault, Faulty
from tests.support.runs import commits, computed_again, digits, run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

STEPS, SELECTING, BATCH = 40, 24, 32
SELECTION = shoal.Selection(until=SELECTING / STEPS)


def job(task: shoal.Task | None = None, selection: shoal.Selection | None = SELECTION, **changes: Any) -> shoal.Job:
    parts: dict[str, Any] = {
        "numerics": "exact",
        "data": shoal.Data(train="builtin:digits", cpus=0.5, window=64, selection=selection),
        "budget": shoal.Budget(steps=STEPS),
        "workers": shoal.Workers(min=1, max=1),
        "checkpoints": shoal.Checkpoints(every=None, export=False),
    }
    return digits(task, **{**parts, **changes})


def state(outcome: Outcome) -> tuple[list[float], str]:
    """Losses and state; every step has read what it had to."""
    assert outcome.status == "finished", outcome.error
    found = commits(outcome)
    sizes = [2 * BATCH] * SELECTING + [BATCH] * (STEPS - SELECTING)
    ends = [sum(sizes[:i]) for i in range(STEPS + 1)]
    assert [c["step"] for c in found] == list(range(1, STEPS + 1))
    assert [c["samples"] for c in found] == [[a, b] for a, b in pairwise(ends)]
    assert outcome.checkpoint is not None
    return [c["loss"] for c in found], state_digest(CheckpointReader(outcome.checkpoint))


def prove(outcome: Outcome) -> None:
    """An audit finds every step's candidates in the data."""
    found = audit_run(RunFolder(Path(outcome.folder)))
    assert found.clean, (found.faults, found.unproven)
    assert found.content is not None
    assert (found.content.equal, found.orders > 0) == (STEPS, True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def alone(runs: Path, ray_cluster: None) -> Outcome:
    """One worker, undisturbed."""
    return run(job(), runs, name="alone")[0]


@pytest.mark.parametrize(
    ("engine", "phase", "step"),
    [
        (shoal.Engine(), "backward", 12),
        (shoal.Engine(), "forward", SELECTING + 1),
        (shoal.Engine(name="zero", stage=3), "backward", 13),
    ],
    ids=["replicated", "replicated, as it is switched off", "zero3"],
)
def test_a_killed_worker_changes_nothing(
    alone: Outcome, runs: Path, tmp_path: Path, engine: shoal.Engine, phase: Any, step: int
) -> None:
    faults = (Fault("SIGKILL", 1, step, phase),)
    task = Faulty(faults=faults, folder=str(tmp_path))
    churned, _ = run(job(task, engine=engine, workers=shoal.Workers(min=1, max=2)), runs)
    assert faults[0].mark(str(tmp_path)).exists()
    assert state(churned) == state(alone)
    prove(churned)


def test_the_proofs_hold_and_it_is_the_selection_that_makes_the_difference(alone: Outcome, runs: Path) -> None:
    right = state(alone)
    prove(alone)
    again = computed_again(RunFolder(Path(alone.folder)), workers=2)
    assert again.identical, again.lines()
    assert again.equal == STEPS
    hardest, _ = run(job(selection=shoal.Selection(rule="hardest", until=SELECTING / STEPS)), runs)
    losses, digest = state(hardest)
    assert digest != right[1]
    assert losses[0] > right[0][0], "the hardest half, before anything was learned"
    plain, _ = run(job(selection=None), runs)
    assert commits(plain)[-1]["samples"] == [BATCH * (STEPS - 1), BATCH * STEPS]


def test_stop_and_resume_and_no_other_selection(alone: Outcome, runs: Path, tmp_path: Path) -> None:
    slow = Faulty(faults=(Fault("slow", 0, 1, "forward"),), folder=str(tmp_path))
    stopped, _ = run(job(slow), runs, interrupt_at=6)
    assert stopped.status == "stopped"
    assert stopped.step < STEPS
    for other in (None, shoal.Selection(rule="hardest", until=SELECTING / STEPS), shoal.Selection(until=0.9)):
        with pytest.raises(DataError, match="the selection"):
            run(job(slow, selection=other), runs, resume=stopped.run_id)
    resumed, _ = run(job(slow, workers=shoal.Workers(min=2, max=2)), runs, resume=stopped.run_id)
    assert state(resumed) == state(alone)
    prove(resumed)


def test_candidates_are_augmented_and_every_source_keeps_its_own_loss(runs: Path) -> None:
    sources = tuple(shoal.Source(name=name, train="builtin:digits", weight=w) for name, w in (("a", 3.0), ("b", 1.0)))
    selection = shoal.Selection(pool=1.5, until=SELECTING / STEPS)
    data = shoal.Data(sources=sources, cpus=0.5, selection=selection, augment=(Mixup(alpha=0.4, classes=10),))
    found = []
    for workers in (1, 2):
        outcome, _ = run(
            job(ImageClassifier(features=16), data=data, workers=shoal.Workers(min=workers, max=workers)), runs
        )
        assert outcome.status == "finished", outcome.error
        assert outcome.checkpoint is not None
        told = commits(outcome)
        counts = [{name: s["samples"] for name, s in c["sources"].items()} for c in told]
        assert [sum(c.values()) for c in counts] == [48] * SELECTING + [BATCH] * (STEPS - SELECTING)
        prove(outcome)
        found.append(([c["sources"] for c in told], state_digest(CheckpointReader(outcome.checkpoint))))
    assert found[0][1] == found[1][1]
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert {n: s["loss"] for n, s in one.items()} == pytest.approx({n: s["loss"] for n, s in two.items()})


def test_more_candidates_than_the_data_holds_are_refused(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch\.size=800 with Selection\.pool=2, 1600 candidates a step, is more"):
        run(job(batch=shoal.Batch(size=800, virtual_shards=8)), runs)
