"""`shoal.train`: Ray Train's values in and out."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray.train

import shoal
from shoal.errors import ConfigError, TrainingFailed
from shoal.launch.api import RunOptions
from shoal.launch.train import configured, workers_of
from shoal.worker.places import need_of
from tests.support.runs import Listener, digits
from tests.support.sabotage import Digits, Sabotage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]


def test_train_takes_and_returns_ray_trains_values(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    result = shoal.train(
        digits(checkpoints=shoal.Checkpoints(every=4)),
        scaling_config=ray.train.ScalingConfig(num_workers=(1, 2), resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name="like-a-trainer",
            storage_path=str(tmp_path / "storage"),
            failure_config=ray.train.FailureConfig(max_failures=1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
        display=Listener(),
        runs_dir=tmp_path / "runs",
    )
    assert isinstance(result, ray.train.Result)
    assert result.error is None
    assert result.metrics is not None
    assert result.metrics["step"] == 12
    assert "val/loss" in result.metrics
    assert result.metrics_dataframe is not None
    assert list(result.metrics_dataframe["step"]) == list(range(1, 13))
    assert isinstance(result.checkpoint, ray.train.Checkpoint)
    with result.checkpoint.as_directory() as folder:
        assert (Path(folder) / "manifest.json").exists()
    assert result.best_checkpoints is not None
    assert len(result.best_checkpoints) == 2
    # Checkpoints and the model are where the RunConfig wants them.
    exported = tmp_path / "storage" / "like-a-trainer" / "model" / "model.safetensors"
    model = Digits().build()
    model.load_state_dict(load_file(exported), strict=True)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_failed_run_raises_with_the_users_traceback(tmp_path: Path) -> None:
    with pytest.raises(TrainingFailed, match="ZeroDivisionError: scripted"):
        shoal.train(digits(Sabotage(how="raise")), display=Listener(), runs_dir=tmp_path)


def test_the_best_checkpoints_mean_what_they_mean_in_ray_train() -> None:
    keep = ray.train.CheckpointConfig(num_to_keep=3, checkpoint_score_attribute="val/accuracy")
    job, _ = configured(digits(), RunOptions(), ray.train.RunConfig(checkpoint_config=keep))
    kept = job.checkpoints
    assert (kept.keep_last, kept.keep_best, kept.best_count) == (1, "-val/accuracy", 3)


def test_gpus_and_other_resources_reach_the_workers() -> None:
    scaling = ray.train.ScalingConfig(
        num_workers=2, use_gpu=True, resources_per_worker={"CPU": 3, "special": 1}, accelerator_type="H100"
    )
    workers = workers_of(digits(), scaling)
    assert (workers.min, workers.max, workers.cpus, workers.gpus) == (2, 2, 3.0, 1.0)
    assert dict(workers.resources) == {"special": 1}
    assert workers.accelerator_type == "H100"
    assert dict(need_of(workers).amounts) == {"CPU": 3, "GPU": 1, "special": 1, "accelerator_type:H100": 0.001}


def test_labels_of_nodes_reach_the_workers() -> None:
    spot = {"market": "spot", "zone": "in(a, b)"}
    for selector in (spot, [spot, spot]):
        workers = workers_of(digits(), ray.train.ScalingConfig(num_workers=2, label_selector=selector))
        assert dict(need_of(workers).labels) == spot
    kept = digits(workers=shoal.Workers(label_selector=spot, accelerator_type="L4"))
    workers = workers_of(kept, ray.train.ScalingConfig(num_workers=2, placement_strategy="SPREAD"))
    assert (dict(workers.label_selector), workers.accelerator_type) == (spot, "L4"), "what nobody says stays"


def test_what_cannot_be_done_is_refused_not_ignored() -> None:
    each = [{"zone": "a"}, {"zone": "b"}]
    with pytest.raises(ConfigError, match=r"ScalingConfig\.label_selector differs from worker to worker"):
        workers_of(digits(), ray.train.ScalingConfig(num_workers=2, label_selector=each))
    with pytest.raises(ConfigError, match=r"placement_strategy='STRICT_SPREAD'"):
        workers_of(digits(), ray.train.ScalingConfig(num_workers=2, placement_strategy="STRICT_SPREAD"))
    with pytest.raises(ConfigError, match=r"RunConfig\.worker_runtime_env"):
        configured(digits(), RunOptions(), ray.train.RunConfig(worker_runtime_env={"pip": ["x"]}))
