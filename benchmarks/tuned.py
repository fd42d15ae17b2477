"""What `benchmarks.sweep` measures Shoal against: Ray Tune with a `TorchTrainer` in each trial, as one would write it.

The best settings that were found for it: Tune's trial takes no CPU beside those of the training workers; the training
controller polls its workers four times a second instead of every two seconds, so that a bad trial is heard of and
ended soon; no checkpoints; the packed samples are read into memory once per worker, without Ray Data.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler

import shoal
from benchmarks.plain import optimizer_for
from shoal.launch.cluster import Local, connect
from shoal.optim.schedules import factor
from shoal.tasks import LanguageModel

POLL_S = 0.25
CONTROLLER_POLL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """The same for all trials; travels to the training workers."""

    task: Mapping[str, int]
    train: str
    validation: str
    """Folders of packed Parquet."""
    batch: int
    steps: int
    every: int
    """Steps between evaluations."""
    evaluated: int
    """Validation samples, the first ones."""
    schedule: shoal.Schedule
    clip_norm: float


@dataclass(frozen=True)
class Tuned:
    """What came of the trials."""

    best: float
    samples: int
    """Trained on, by all trials together."""
    stopped_early: int
    starts_s: list[float]
    """From Tune's start of each trial to its first training step."""


def tokens_in(folder: str) -> torch.Tensor:
    """All samples of a folder. [samples, block]"""
    tables = [pq.read_table(path, columns=["tokens"]) for path in sorted(Path(folder).glob("*.parquet"))]
    columns = [np.asarray(t["tokens"].combine_chunks().flatten()).reshape(t.num_rows, -1) for t in tables]
    return torch.from_numpy(np.concatenate(columns).astype(np.int64))


def evaluate(task: LanguageModel, model: torch.nn.Module, samples: torch.Tensor, batch: int) -> float:
    """Mean loss over this rank's part, then over all ranks."""
    context = ray.train.get_context()
    mine = samples[context.get_world_rank() :: context.get_world_size()]
    with torch.no_grad():
        losses = [task.loss(model, {"tokens": part}) * len(part) for part in mine.split(batch)]
    total = torch.stack([torch.stack(losses).sum(), torch.tensor(float(len(mine)))])
    if context.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return float(total[0] / total[1])


def train_loop(config: dict[str, Any]) -> None:
    """One training worker."""
    spec: Spec = config["spec"]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    context = ray.train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    train, held_out = tokens_in(spec.train), tokens_in(spec.validation)[: spec.evaluated]
    order = np.random.default_rng(0).permutation(len(train))
    task = LanguageModel(**spec.task)
    model = prepare_model(task.build())
    bare = model.module if size > 1 else model
    optimizer = optimizer_for(bare, SimpleNamespace(lr=config["lr"]))
    begun = time.time()
    for step in range(spec.steps):
        rows = order.take(range(step * spec.batch + rank, (step + 1) * spec.batch, size), mode="wrap")
        for group in optimizer.param_groups:
            group["lr"] = config["lr"] * factor(spec.schedule, step / spec.steps)
        task.loss(model, {"tokens": train[rows]}).backward()
        torch.nn.utils.clip_grad_norm_(bare.parameters(), spec.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % spec.every == 0 or done == spec.steps:
            loss = evaluate(task, bare, held_out, spec.batch)
            ray.train.report({"loss": loss, "samples": done * spec.batch, "begun": begun})


def trial(config: dict[str, Any]) -> None:
    """One trial, in Tune's own actor: the run of a TorchTrainer, whose reports Tune hears."""
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"spec": config["spec"], "lr": config["lr"]},
        scaling_config=ScalingConfig(num_workers=config["workers"], resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=tune.get_context().get_trial_id(), storage_path=config["storage"], callbacks=[TuneReportCallback()]
        ),
    )
    trainer.fit()


class Starts(tune.Callback):
    """When Tune started each trial."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.at.setdefault(trial.trial_id, time.time())


def run_tuned(
    spec: Spec, rates: list[float], *, workers: int, at_once: int, grace: int, reduction: float, folder: Path
) -> Tuned:
    """The whole sweep, from an empty machine to its end. Raises RuntimeError if any trial failed."""
    os.environ[CONTROLLER_POLL] = str(POLL_S)
    starts, budget = Starts(), spec.batch * spec.steps
    space = {
        "lr": tune.grid_search(rates), "spec": spec, "workers": workers // at_once, "storage": str(folder / "train"),
    }  # fmt: skip
    # Tune's actors take something, or they would all begin at once.
    nothing = tune.PlacementGroupFactory([{"CPU": 0.001}])
    with connect(Local(workers + 1, (), 1), None):
        results = tune.Tuner(
            tune.with_resources(trial, nothing),
            param_space=space,
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once,
                scheduler=AsyncHyperBandScheduler(
                    time_attr="samples", metric="loss", mode="min", max_t=2 * budget, grace_period=grace,
                    reduction_factor=reduction, stop_last_trials=False,
                ),
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0, callbacks=[starts]),
        ).fit()  # fmt: skip
    if results.num_errors:
        raise RuntimeError(f"{results.num_errors} trials of the TorchTrainer arm failed: {results.errors[0]}")
    frames = [result.metrics_dataframe for result in results]
    if any(frame is None or frame.empty for frame in frames):
        raise RuntimeError("a trial of the TorchTrainer arm has reported nothing")
    samples = [int(frame["samples"].max()) for frame in frames]
    return Tuned(
        best=min(float(frame["loss"].min()) for frame in frames),
        samples=sum(samples),
        stopped_early=sum(count < budget for count in samples),
        starts_s=[float(frame["begun"].iloc[0]) - starts.at[frame["trial_id"].iloc[0]] for frame in frames],
    )
