"""`shoal.train`: the Python API, in Ray Train's own values."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.cli.display import make_display
from shoal.coordinator.status import Display, Outcome
from shoal.errors import ConfigError, Interrupted, TrainingFailed
from shoal.job import Job
from shoal.launch.api import RunOptions, run_job
from shoal.run_folder import RunFolder
from shoal.state.store import CheckpointStore
from shoal.tracking.ledger import effective, read

if TYPE_CHECKING:
    import ray.train


def train(
    job: Job,
    *,
    scaling_config: ray.train.ScalingConfig | None = None,
    run_config: ray.train.RunConfig | None = None,
    resume: str | None = None,
    display: Display | None = None,
    runs_dir: str | Path = "runs",
    tracking_uri: str | None = None,
) -> ray.train.Result:
    """Train `job` on the connected Ray cluster (or a local one) and return Ray Train's `Result`.

    `scaling_config` overrides `job.workers`; `run_config` overrides the run's name, storage, `job.failures` and
    `job.checkpoints`, all with the meaning they have in Ray Train
    (https://docs.ray.io/en/latest/train/api/api.html). `resume` continues an earlier run, by id or folder.

    Raises ConfigError, DataError, CheckpointError, CapacityError before training; TrainingFailed if the run fails (the
    message holds the user's traceback if their code raised), Interrupted if it was stopped.
    """
    if scaling_config is not None:
        job = replace(job, workers=workers_of(job, scaling_config))
    options = RunOptions(runs_dir=Path(runs_dir), tracking_uri=tracking_uri, resume=resume)
    if run_config is not None:
        job, options = configured(job, options, run_config)
    with nullcontext(display) if display else make_display(stream=sys.stderr) as shown:
        outcome = run_job(job, options=options, display=shown)
    if outcome.status == "failed":
        raise TrainingFailed(f"{outcome.error}\nThe record of the run: {outcome.record}")
    if outcome.status == "stopped":
        raise Interrupted(f"stopped after step {outcome.step}; continue with resume={outcome.run_id!r}")
    return result_of(outcome)


def workers_of(job: Job, scaling: ray.train.ScalingConfig) -> Any:
    """`job.workers` as a ScalingConfig asks for them; ConfigError for what Shoal cannot do."""
    for name in ("trainer_resources", "use_tpu", "topology"):
        if getattr(scaling, name, None):
            raise ConfigError(f"ScalingConfig.{name}={getattr(scaling, name)!r} is not supported; leave it out")
    if str(scaling.placement_strategy).startswith("STRICT"):
        raise ConfigError(
            f"ScalingConfig.placement_strategy={scaling.placement_strategy!r} is not supported: each worker has a "
            f"place of its own, so that single ones can come and go. PACK and SPREAD, which are wishes, are accepted; "
            f"label_selector says on which nodes workers may be"
        )
    count: Any = scaling.num_workers
    low, high = count if isinstance(count, tuple) else (count, count)
    asked: dict[str, float] = dict(scaling.resources_per_worker or {})  # type: ignore[arg-type]
    cpus = asked.pop("CPU", job.workers.cpus)
    gpus = asked.pop("GPU", 1.0 if scaling.use_gpu else 0.0)
    return replace(
        job.workers,
        min=low,
        max=high,
        cpus=float(cpus),
        gpus=float(gpus),
        resources=tuple(sorted(asked.items())),
        accelerator_type=scaling.accelerator_type or job.workers.accelerator_type,
        label_selector=_selector(scaling) or job.workers.label_selector,
    )


def _selector(scaling: ray.train.ScalingConfig) -> tuple[tuple[str, str], ...]:
    """The one selector for all workers; ConfigError if it depends on which worker it is."""
    said: Any = getattr(scaling, "label_selector", None) or {}
    each = said if isinstance(said, list) else [said]
    if any(one != each[0] for one in each):
        raise ConfigError(
            "ScalingConfig.label_selector differs from worker to worker; Shoal's workers come and go and stand in for "
            "each other, so give one selector for all of them"
        )
    return tuple(each[0].items())


def configured(job: Job, options: RunOptions, run: ray.train.RunConfig) -> tuple[Job, RunOptions]:
    """`job` and `options` as a RunConfig asks for them; ConfigError for what Shoal cannot do."""
    for name in ("callbacks", "storage_filesystem", "worker_runtime_env"):
        if getattr(run, name, None):
            raise ConfigError(f"RunConfig.{name} is not supported; leave it out")
    if run.failure_config is not None:
        job = replace(job, failures=replace(job.failures, max_failures=run.failure_config.max_failures))
    keep = run.checkpoint_config
    if keep is not None and keep.checkpoint_score_attribute:
        sign = "-" if keep.checkpoint_score_order == "max" else ""
        best = f"{sign}{keep.checkpoint_score_attribute}"
        kept = replace(job.checkpoints, keep_last=1, keep_best=best, best_count=keep.num_to_keep)
        job = replace(job, checkpoints=kept)
    elif keep is not None:
        job = replace(job, checkpoints=replace(job.checkpoints, keep_last=keep.num_to_keep))
    storage = str(run.storage_path) if run.storage_path else None
    return job, replace(options, name=run.name or options.name, storage_uri=storage)


def result_of(outcome: Outcome) -> ray.train.Result:
    """Ray Train's Result of a finished run."""
    import pandas
    import ray.train

    folder = RunFolder(Path(outcome.folder))
    kept = CheckpointStore(folder.read()["checkpoint_uri"]).list()
    checkpoints = [(ray.train.Checkpoint(info.uri), dict(info.metrics)) for info in kept]
    return ray.train.Result(
        metrics={**outcome.metrics, "step": outcome.step},
        checkpoint=ray.train.Checkpoint(outcome.checkpoint) if outcome.checkpoint else None,
        error=None,
        path=outcome.folder,
        metrics_dataframe=pandas.DataFrame(e for e in effective(read(folder.ledger)[0]) if e["kind"] == "commit"),
        best_checkpoints=checkpoints,
    )
