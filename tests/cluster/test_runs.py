"""Whole runs: what they leave, and that neither workers, engines nor interruptions change what is learned."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import shoal
from shoal.errors import ConfigError
from tests.support.runs import commits, digits, ledger, losses, run
from tests.support.sabotage import Digits
from tests.support.shared_cluster import CPUS

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

TOLERANCE = 2e-5
"""Relative, on losses after a dozen fp32 steps: rounding of sums in another order."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(runs: Path) -> list[float]:
    """Losses of the plain run on two replicated workers."""
    return losses(run(digits(), runs)[0])


def test_a_finished_run_leaves_everything(runs: Path) -> None:
    import torch
    from safetensors.torch import load_file

    job = digits(
        evaluation=shoal.Evaluation(every=5, samples=100),
        checkpoints=shoal.Checkpoints(every=4, keep_last=2, export=True),
    )
    outcome, heard = run(job, runs, pool=None)
    assert (outcome.status, outcome.exit_code, outcome.step) == ("finished", 0, 12)
    assert len(losses(outcome)) == 12
    folder = Path(outcome.folder)
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"step-00000008", "step-00000012"}
    assert [e["step"] for e in ledger(outcome) if e["kind"] == "evaluation"] == [5, 10, 12]
    assert outcome.metrics["val/perplexity"] == pytest.approx(math.exp(outcome.metrics["val/loss"])), "summarize()"
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"
    assert (folder / "report.html").stat().st_size > 1000
    assert "view 1: 2 workers" in heard.said("view")
    # The exported model is plain torch: no Shoal needed.
    model = Digits().build()
    model.load_state_dict(load_file(folder / "model" / "model.safetensors"), strict=True)
    assert torch.isfinite(model(torch.zeros(1, 1, 8, 8))).all()


def test_mlflow_shows_every_step_once(runs: Path) -> None:
    from mlflow import MlflowClient

    outcome, _ = run(digits(), runs)
    place = json.loads((Path(outcome.folder) / "run.json").read_text())["mlflow"]
    client = MlflowClient(place["uri"])
    record = client.get_run(place["run_id"])
    assert record.info.status == "FINISHED"
    history = client.get_metric_history(place["run_id"], "train/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == list(
        enumerate(losses(outcome), start=1)
    )
    assert record.data.params["batch.size"] == "32"
    assert record.inputs.dataset_inputs[0].dataset.name == "builtin:digits"


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_matter(runs: Path, undisturbed: list[float], workers: int) -> None:
    outcome, _ = run(digits(workers=shoal.Workers(min=workers, max=workers)), runs)
    assert losses(outcome) == pytest.approx(undisturbed, rel=TOLERANCE)


def test_more_workers_than_the_cluster_can_have_is_refused_with_the_numbers(runs: Path) -> None:
    outcome, _ = run(digits(workers=shoal.Workers(min=8, max=8, cpus=4.0, start_s=4.0)), runs, pool=None)
    assert outcome.status == "failed"
    assert "workers.min=8" in (outcome.error or "")
    assert f"the nodes could hold {CPUS // 4} of them in all" in (outcome.error or "")
    assert f"what would fit: workers.min={CPUS // 4}, or workers.cpus={CPUS / 8:g}" in (outcome.error or "")
    assert commits(outcome) == []


def test_a_batch_larger_than_the_data_is_refused_before_anything_starts(runs: Path) -> None:
    with pytest.raises(ConfigError, match="size=4096"):
        run(digits(batch=shoal.Batch(size=4096)), runs)


@pytest.fixture(scope="module")
def once(runs: Path) -> None:
    """A run of that name, finished."""
    run(digits(budget=shoal.Budget(steps=1)), runs, name="once")


@pytest.mark.usefixtures("once")
def test_a_run_name_is_used_once(runs: Path) -> None:
    with pytest.raises(ConfigError, match="once exists already"):
        run(digits(), runs, name="once")


@pytest.mark.usefixtures("once")
def test_a_finished_run_is_resumed_only_with_a_larger_budget(runs: Path) -> None:
    with pytest.raises(ConfigError, match="its whole budget"):
        run(digits(budget=shoal.Budget(steps=1)), runs, resume="once")
    longer, _ = run(replace(digits(), budget=shoal.Budget(steps=3)), runs, resume="once")
    assert longer.status == "finished"
    assert longer.run_id != "once"  # another budget is another schedule: a run of its own
    assert [c["step"] for c in commits(longer)] == [2, 3]
