"""Augmented samples in a real run: in `exact` numerics the same bits on any number of workers, and the proofs hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shoal
from shoal.audit.run import audit_run
from shoal.errors import DataError
from shoal.job import Crop, Erase, Flip, Mixup
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from shoal.tasks import ImageClassifier
from tests.support.faults import Fault, Faulty
from tests.support.runs import computed_again, digits, losses, run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

AUGMENT = (Crop(padding=1), Erase(probability=0.5, fill=None), Mixup(alpha=0.4, classes=10))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def job(workers: int, *augment: Any, task: shoal.Task | None = None) -> shoal.Job:
    return digits(
        task or ImageClassifier(features=16),
        numerics="exact",
        data=shoal.Data(train="builtin:digits", cpus=0.5, augment=augment),
        budget=shoal.Budget(steps=20),
        workers=shoal.Workers(min=workers, max=workers),
        checkpoints=shoal.Checkpoints(every=None, export=False),
    )


def test_one_worker_and_two_come_to_the_same_state_and_the_proofs_hold(runs: Path) -> None:
    found = {}
    for name, made in {"one": job(1, *AUGMENT), "two": job(2, *AUGMENT), "plain": job(1)}.items():
        outcome, _ = run(made, runs, name=name)
        assert outcome.status == "finished", outcome.error
        assert outcome.checkpoint is not None
        with CheckpointReader(outcome.checkpoint) as reader:
            found[name] = (state_digest(reader), losses(outcome))
    assert found["one"] == found["two"]
    assert found["plain"][0] != found["one"][0], "nothing was augmented"
    assert found["plain"][1][0] != found["one"][1][0]

    folder = RunFolder(runs / "two")
    audit = audit_run(folder)
    assert audit.clean, audit.faults or audit.unproven
    assert audit.content is not None
    assert audit.content.equal == 20, "the record is of the samples as they were read"
    again = computed_again(folder, workers=1)
    assert again.identical, again.lines()
    assert again.equal == 20


def test_a_kill_changes_nothing_in_what_is_augmented(runs: Path, tmp_path: Path) -> None:
    found, faults = [], (Fault("SIGKILL", 1, 8, "backward"),)
    for workers, script in ((1, ()), (3, faults)):
        outcome, _ = run(job(workers, *AUGMENT, task=Faulty(faults=script, folder=str(tmp_path))), runs)
        assert outcome.status == "finished", outcome.error
        assert outcome.checkpoint is not None
        with CheckpointReader(outcome.checkpoint) as reader:
            found.append((state_digest(reader), losses(outcome)))
    assert faults[0].mark(str(tmp_path)).exists()
    assert found[0] == found[1]


def test_what_does_not_suit_the_data_is_refused_before_anything_starts(runs: Path) -> None:
    with pytest.raises(DataError, match="Flip works on column 'picture', and training reads image, label"):
        run(job(1, Flip(column="picture")), runs)
