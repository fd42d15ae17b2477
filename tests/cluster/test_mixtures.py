"""Mixtures and curricula under churn: the same bits on any number of workers, and an audit proves the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import shoal
from shoal.audit.run import audit_run
from shoal.coordinator.status import Outcome
from shoal.data.catalog import read_catalog
from shoal.data.corpora import digits as digits_corpus
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from tests.support.faults import Fault, Faulty
from tests.support.runs import commits, digits, losses, run

pytestmark = pytest.mark.cluster

STEPS = 60


def job(tmp: Path, task: shoal.Task | None = None, **changes: Any) -> shoal.Job:
    """Digits mixed with digits seven and eight alone, of which there are more and more."""
    folder = tmp / "sevens"
    if not folder.exists():
        folder.mkdir()
        catalog = read_catalog(str(digits_corpus(tmp / "corpora") / "train"))
        tables = [pq.read_table(file) for file in catalog.files]
        table = pa.concat_tables(tables)
        pq.write_table(table.filter(pa.compute.greater(table["label"], 6)), folder / "a.parquet", row_group_size=50)
    sources = (
        shoal.Source(name="all", train="builtin:digits", weight=3.0),
        shoal.Source(name="late", train=str(folder), weight=((0.2, 0.0), (1.0, 3.0))),
    )
    parts: dict[str, Any] = {
        "numerics": "exact",
        "data": shoal.Data(sources=sources, cpus=0.5, window=64),
        "budget": shoal.Budget(steps=STEPS),
        "workers": shoal.Workers(min=1, max=1),
        "checkpoints": shoal.Checkpoints(every=None, export=False),
    }
    return digits(task, **{**parts, **changes})


def state(outcome: Outcome) -> tuple[list[float], str]:
    assert outcome.status == "finished", outcome.error
    assert outcome.checkpoint is not None
    return losses(outcome), state_digest(CheckpointReader(outcome.checkpoint))


def test_a_mixture_survives_a_kill_and_a_stop(ray_cluster: None, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    alone, _ = run(job(tmp_path), runs)
    right = state(alone)

    faults = (Fault("SIGKILL", 1, 20, "backward"),)
    task = Faulty(faults=faults, folder=str(tmp_path))
    churned, _ = run(job(tmp_path, task, workers=shoal.Workers(min=1, max=3)), runs)
    assert state(churned) == right
    assert len([f for f in faults if f.mark(str(tmp_path)).exists()]) == 1

    slow = Faulty(faults=(Fault("slow", 0, 1, "forward"),), folder=str(tmp_path))  # or it is over before the stop
    stopped, _ = run(job(tmp_path, slow), runs, interrupt_at=25)
    assert stopped.status == "stopped"
    resumed, _ = run(job(tmp_path, slow, workers=shoal.Workers(min=2, max=2)), runs, resume=stopped.run_id)
    assert state(resumed) == right

    for outcome in (alone, churned, resumed):
        found = audit_run(RunFolder(Path(outcome.folder)))
        assert found.clean, (found.faults, found.unproven)
        assert found.content is not None
        assert found.content.equal == STEPS, "the digests of a lost member's samples are known to all"
        assert found.orders > 0

    told = [c.get("sources", {}) for c in commits(alone)]
    assert all(set(t) == {"all"} for t in told[:10]), "the other source has weight 0 at first"
    late = sum(t.get("late", {"samples": 0})["samples"] for t in told[-10:])
    assert 110 < late < 160, "nearly as many of each at the end, 32 samples a step"
    first = told[-1]
    mean = sum(t["samples"] * t["loss"] for t in first.values()) / 32
    assert mean == pytest.approx(commits(alone)[-1]["loss"], rel=1e-6)


def test_easy_samples_first_is_the_same_on_any_number_of_workers(ray_cluster: None, tmp_path: Path) -> None:
    data = shoal.Data(train="builtin:digits", cpus=0.5, window=64, curriculum=shoal.Curriculum(until=0.8))
    one, _ = run(job(tmp_path, data=data), tmp_path / "runs")
    two, _ = run(job(tmp_path, data=data, workers=shoal.Workers(min=2, max=2)), tmp_path / "runs")
    assert state(one) == state(two)
    found = audit_run(RunFolder(Path(two.folder)))
    assert found.clean, (found.faults, found.unproven)
    assert found.content is not None
    assert found.content.equal == STEPS
    assert found.epochs is None, "no epoch holds every sample once"


def test_sources_that_do_not_fit_together_are_refused(ray_cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    pq.write_table(pa.table({"image": pa.array([1.0] * 40), "label": pa.array([1] * 40)}), folder / "a.parquet")
    sources = (
        shoal.Source(name="all", train="builtin:digits"),
        shoal.Source(name="odd", train=str(folder)),
    )
    with pytest.raises(shoal.errors.DataError, match="'all' and 'odd' cannot be mixed"):
        run(job(tmp_path, data=shoal.Data(sources=sources)), tmp_path / "runs")


def test_a_source_with_fewer_samples_than_a_step_takes_of_it_is_refused(ray_cluster: None, tmp_path: Path) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    whole = read_catalog(str(digits_corpus(tmp_path / "corpora") / "train"))
    pq.write_table(pq.read_table(whole.files[0]).slice(0, 10), folder / "a.parquet")

    def mixed(late: float) -> shoal.Job:
        few = shoal.Source(name="few", train=str(folder), weight=((0.0, 0.0), (1.0, late)))
        return job(
            tmp_path,
            data=shoal.Data(sources=(shoal.Source(name="all", train="builtin:digits"), few), cpus=0.5),
            budget=shoal.Budget(steps=4),
        )

    with pytest.raises(shoal.errors.ConfigError, match=r"step 4 would take 1\d samples of the source 'few', which has"):
        run(mixed(1.0), tmp_path / "runs")
    outcome, _ = run(mixed(0.25), tmp_path / "runs")
    assert outcome.status == "finished", outcome.error
