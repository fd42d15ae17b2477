"""One job for all faults: in `exact` numerics its result is one SHA-256, whatever happens to whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.coordinator.status import Outcome
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from tests.support.faults import Fault, Faulty
from tests.support.runs import Listener, commits, digits, ledger, losses, run

ENGINES = ("replicated", "zero1", "zero2", "zero3")
STEPS = 60


@dataclass
class Result:
    """What a run came to."""

    outcome: Outcome
    heard: Listener
    losses: list[float]
    state: str

    def entries(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in ledger(self.outcome) if e["kind"] == kind]


Train = Callable[..., Result]


def job(engine: str = "replicated", task: shoal.Task | None = None, **changes: Any) -> shoal.Job:
    """A few seconds of digits in `exact` numerics."""
    kind = shoal.Engine(name="zero", stage=int(engine[-1])) if engine != "replicated" else shoal.Engine()  # type: ignore[arg-type]
    parts: dict[str, Any] = {
        "engine": kind,
        "numerics": "exact",
        "optimizer": shoal.Optimizer(lr=1e-2, ema=0.9),
        "budget": shoal.Budget(steps=STEPS),
        "workers": shoal.Workers(min=1, max=3),
        "checkpoints": shoal.Checkpoints(every=None, export=False),
        "failures": shoal.Failures(snapshot_every=3),
    }
    return digits(task, **{**parts, **changes})


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def train(runs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Train:
    """Run a job with faults, in warm processes unless `pool=None`; every sample once, every fault has happened, and the
    result's digest."""
    request.getfixturevalue("ray_cluster")

    def go(engine: str, *faults: Fault, **changes: Any) -> Result:
        options = {key: changes.pop(key) for key in ("listener", "name", "pool", "warm") if key in changes}
        task = Faulty(faults=faults, folder=str(tmp_path)) if faults else changes.pop("task", None)
        outcome, heard = run(job(engine, task, **changes), runs, **options)
        assert outcome.status == "finished", outcome.error
        unseen = [f for f in faults if not f.mark(str(tmp_path)).exists()]
        assert not unseen, f"never happened: {unseen}"
        assert outcome.checkpoint is not None
        assert all(c.get("samples_digest") for c in commits(outcome)), "also of what a lost member had no time to tell"
        return Result(outcome, heard, losses(outcome), state_digest(CheckpointReader(outcome.checkpoint)))

    return go


def manifest(runs: Path, name: str, step: int) -> str:
    """The file that makes the checkpoint of `step` of run `name` exist."""
    return str(runs / name / "checkpoints" / f"step-{step:08d}" / "manifest.json")


_UNDISTURBED: dict[int, Result] = {}


def alone(train: Train, steps: int) -> Result:
    """`steps` steps of the job with one worker and no faults. In `exact` numerics the engine does not matter."""
    if steps not in _UNDISTURBED:
        one = shoal.Workers(min=1, max=1)
        _UNDISTURBED[steps] = train("replicated", workers=one, budget=shoal.Budget(steps=steps))
    return _UNDISTURBED[steps]


@pytest.fixture
def undisturbed(train: Train) -> Result:
    return alone(train, STEPS)
