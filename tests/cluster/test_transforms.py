"""The user's transforms in a real run: in `exact` numerics the same bits on any number of workers, the audit proves the
samples, and an error in them ends the run with their traceback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import shoal
from shoal import ray_compat
from shoal.audit.run import audit_run
from shoal.data import transforming
from shoal.data.catalog import Catalog, read_catalog
from shoal.data.columns import to_numpy
from shoal.data.pipeline import plans, read_samples, window_source
from shoal.data.trying import transformed
from shoal.errors import TaskError
from shoal.job.recipe import load_recipe
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from shoal.tasks import LanguageModel
from tests.support.faults import Fault, Faulty
from tests.support.runs import computed_again, ledger, losses, run
from tests.support.transforms import LENGTH, Failing, Hide, Wider, picture, project, tokenise, write_texts

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

ROWS, STEPS = 200, 24


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"), ROWS)


def job(folder: Path, workers: int, *steps: Any) -> shoal.Job:
    return shoal.Job(
        name="texts",
        task=LanguageModel(vocabulary=256, context=LENGTH - 1, layers=1, heads=2, width=16),
        data=shoal.Data(
            train=str(folder), validation=str(folder), columns=("id", "text"), transforms=steps, cpus=0.5, window=64
        ),
        batch=shoal.Batch(size=32, virtual_shards=8),
        budget=shoal.Budget(steps=STEPS),
        numerics="exact",
        workers=shoal.Workers(min=workers, max=workers),
        evaluation=shoal.Evaluation(every=None, samples=64),
        checkpoints=shoal.Checkpoints(every=None, export=False),
    )


def test_one_worker_and_two_come_to_the_same_state_and_the_proofs_hold(runs: Path, folder: Path) -> None:
    found = {}
    for name, made in {
        "one": job(folder, 1, tokenise, Hide()),
        "two": job(folder, 2, tokenise, Hide()),
        "plain": job(folder, 1, tokenise),
    }.items():
        outcome, _ = run(made, runs, name=name)
        assert outcome.status == "finished", outcome.error
        assert outcome.checkpoint is not None
        with CheckpointReader(outcome.checkpoint) as reader:
            found[name] = (state_digest(reader), losses(outcome))
    assert found["one"] == found["two"]
    assert found["plain"][0] != found["one"][0], "nothing was hidden"

    two = RunFolder(runs / "two")
    audit = audit_run(two)
    assert audit.clean, audit.faults or audit.unproven
    assert audit.content is not None
    assert audit.content.equal == STEPS, "what members got is what the transforms make of the data again"
    again = computed_again(two, workers=1)
    assert again.identical, again.lines()


def test_the_audit_sees_other_transforms(runs: Path, folder: Path) -> None:
    """The record names them; the proof is in what they make."""
    (runs / "recipes").mkdir()
    recipe = runs / "recipes" / "mine.py"
    recipe.write_text(RECIPE.format(folder=str(folder), length=LENGTH))
    outcome, _ = run(load_recipe(recipe).job, runs, name="mine", recipe=load_recipe(recipe))
    assert outcome.status == "finished", outcome.error
    audit = audit_run(RunFolder(runs / "mine"))
    assert audit.clean, audit.faults or audit.unproven

    kept = runs / "mine" / "recipe" / "mine.py"
    kept.write_text(kept.read_text().replace("np.frombuffer(content, np.uint8)", "1"))
    audit = audit_run(RunFolder(runs / "mine"))
    assert [f.kind for f in audit.faults] == ["content"]


RECIPE = """
import numpy as np
import shoal
from shoal.tasks import LanguageModel

def own(columns, keys):
    tokens = np.zeros((len(keys), {length}), np.int64)
    for row, text in zip(tokens, columns["text"]):
        content = text.encode()[:{length}]
        row[: len(content)] = np.frombuffer(content, np.uint8)
    return {{"tokens": tokens}}

job = shoal.Job(
    task=LanguageModel(vocabulary=256, context={length} - 1, layers=1, heads=2, width=16),
    data=shoal.Data(train={folder!r}, columns=("text",), transforms=(own,), cpus=0.5),
    budget=shoal.Budget(steps=4),
    workers=shoal.Workers(min=1, max=1),
    checkpoints=shoal.Checkpoints(every=None, export=False),
)
"""


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Failing(at=150), ("the transform Failing failed: KeyError: 'no such column'\nTraceback", "in raise_it")),
        (Wider(at=150), ("the transforms tokenise, Wider together gave id (int64 []), tokens (int64 [17])",)),
    ],
)
def test_an_error_in_a_transform_ends_the_run_at_once(
    runs: Path, folder: Path, step: Any, words: tuple[str, ...]
) -> None:
    outcome, _ = run(job(folder, 2, tokenise, step), runs)
    assert outcome.status == "failed"
    assert all(word in (outcome.error or "") for word in words), outcome.error
    assert sum(e["kind"] == "view" for e in ledger(outcome)) <= 1, "nothing is tried again"


def test_what_fails_on_the_first_rows_never_starts(runs: Path, folder: Path) -> None:
    with pytest.raises(TaskError, match="the transform Failing failed: KeyError"):
        run(job(folder, 1, tokenise, Failing(at=0)), runs)


def test_a_kill_changes_nothing(runs: Path, folder: Path, tmp_path: Path) -> None:
    fault = Fault("SIGKILL", 1, 10, "backward")
    states = set()
    for name, workers, faults in (("alone", 1, ()), ("killed", 2, (fault,))):
        task = Faulty(faults=faults, folder=str(tmp_path))
        outcome, _ = run(replace(job(folder, workers, tokenise, Hide(), picture), task=task), runs, name=name)
        assert outcome.status == "finished", outcome.error
        assert outcome.checkpoint is not None
        with CheckpointReader(outcome.checkpoint) as reader:
            states.add(state_digest(reader))
        audit = audit_run(RunFolder(runs / name))
        assert audit.clean, audit.faults or audit.unproven
    assert fault.mark(str(tmp_path)).exists()
    assert len(states) == 1


def test_ray_data_joins_reading_and_transforming(folder: Path) -> None:
    """And gives what the same transforms make without it, whatever size its blocks are."""
    catalog = _small_calls(transformed(read_catalog(str(folder), ["id", "text"], raw=True), [tokenise, project], [], 1))
    assert catalog.transforming is not None
    order = catalog.order(seed=5, window=50)
    tasks = list(plans(catalog, order, 0, 3 * ROWS, task_bytes=1))
    dataset = ray_compat.read_in_order(
        window_source(catalog, tasks, seed=order.seed), catalog.transforming.tables,
        tasks=len(tasks), cpus=2.0, task_cpus=1.0, group=None, held_bytes=64 << 20,
    )  # fmt: skip
    tables = [ray.get(block.ref) for block in ray_compat.blocks(dataset)]
    for name in ("id", "x"):
        want = np.concatenate([s[name] for task in tasks for s in read_samples(catalog, order.seed, task)])
        got = np.concatenate([to_numpy(name, t.column(name)) for t in tables])
        assert got.tobytes() == want.tobytes()
    assert "ReadWindows->MapBatches" in dataset.stats(), "two tasks, and the rows copied between them"


def _small_calls(catalog: Catalog) -> Catalog:
    assert isinstance(catalog.transforming, transforming.Transforming)
    return replace(catalog, transforming=replace(catalog.transforming, call_rows=7))
