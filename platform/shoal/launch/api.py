"""Run a job: what `shoal train` and `shoal.train` both call."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.coordinator.status import Display, Outcome
from shoal.errors import ShoalError, TrainingFailed
from shoal.job import Job
from shoal.launch.cluster import Connection, connect
from shoal.launch.prepare import Prepared, prepare
from shoal.launch.signals import StopRequests

if TYPE_CHECKING:
    from shoal.coordinator.actor import Ended
    from shoal.job.recipe import Recipe

POLL_S = 0.5
ANSWER_S = 60.0
"""A coordinator that does not answer for so long is taken for dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """Where and under which name a job runs; nothing here changes its result."""

    runs_dir: Path = Path("runs")
    name: str | None = None
    """Name of the run folder; default: job name, date, time and four random letters."""
    address: str | None = None
    """Ray cluster to join; default: RAY_ADDRESS, else a local one."""
    tracking_uri: str | None = None
    """MLflow; default: SQLite in `runs_dir`."""
    resume: str | None = None
    """Run (id or folder) to continue from its last durable checkpoint."""
    storage_uri: str | None = None
    """Where checkpoints and the exported model go; default: the run folder."""
    driver_silence_s: float = 60.0
    """On a cluster that outlives this process: how long after its end the run stops, with a checkpoint."""
    recipe: Recipe | None = None
    overrides: tuple[str, ...] = ()


def run_job(job: Job, *, options: RunOptions, display: Display) -> Outcome:
    """Run `job` to its end and say how it ended.

    Raises ConfigError, DataError, CheckpointError or CapacityError for what is wrong before training starts; what
    goes wrong later is told by the outcome.
    """
    ready = prepare(job, options)
    display.event("info", "connecting to Ray")
    # Inside the connection, because Ray's own handlers come with it and would end this process at the first signal.
    with connect(job, options.address) as connection, StopRequests() as stop:
        ready.folder.update(address=connection.address, local=connection.local)
        outcome = _supervise(ready, connection, display, stop)
    display.finished(outcome)
    return outcome


def _supervise(ready: Prepared, connection: Connection, display: Display, stop: StopRequests) -> Outcome:
    import ray

    from shoal.coordinator.actor import Coordinator

    display.started(ready.introduction(connection))
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(connection.node_id, soft=False)
    coordinator: Any = (
        ray.remote(Coordinator)
        .options(
            name=f"shoal-{ready.folder.run_id}-{int(time.time())}",
            namespace="shoal",
            # On a cluster that outlives us the coordinator does, too: it then ends the run cleanly by itself.
            lifetime=None if connection.local else "detached",
            num_cpus=0,
            max_restarts=0,
            scheduling_strategy=place,
        )
        .remote(ready.plan(connection))
    )
    try:
        ended = _watch(coordinator, display, stop)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        return _died(ready, error)
    # Only now: if this process ends in any other way, the coordinator notices and ends the run cleanly by itself.
    ray.kill(coordinator, no_restart=True)
    return _outcome(ready, ended, stop) if ended is not None else _aborted(ready, stop)


def _watch(coordinator: Any, display: Display, stop: StopRequests) -> Ended | None:
    """Follow the run to its end; None if the user asked twice to stop."""
    import ray

    run, seen, asked = coordinator.run.remote(), 0, False
    while True:
        done, _ = ray.wait([run], timeout=POLL_S)
        status, news = ray.get(coordinator.status.remote(seen), timeout=ANSWER_S)
        seen += len(news)
        for kind, text in news:
            display.event(kind, text)
        display.status(status)
        if done:
            return _result(run)
        if stop.count >= 2:
            return None
        if stop.count and not asked:
            asked = True
            coordinator.stop.remote(f"stopped by {stop.name}")
            display.event("stopping", "stopping after this step, checkpointing; Ctrl-C again stops at once")


def _result(run: Any) -> Ended:
    import ray

    try:
        return ray.get(run)
    except ray.exceptions.RayTaskError as error:
        # What the coordinator refuses at its birth is the user's to mend and needs no traceback.
        if isinstance(error.cause, ShoalError):
            raise error.cause from None
        raise


def _outcome(ready: Prepared, ended: Ended, stop: StopRequests) -> Outcome:
    later = f"shoal runs send {ready.folder.run_id}"
    note = f"{ended.unsent} entries could not be sent to MLflow; send them later: {later}" if ended.unsent else None
    codes: Mapping[str, int] = {"finished": 0, "failed": 1, "stopped": stop.exit_code}
    exported = ended.status == "finished" and ready.job.checkpoints.export
    return Outcome(
        status=ended.status,
        run_id=ready.folder.run_id,
        folder=str(ready.folder.path),
        step=ended.step,
        metrics=ended.metrics,
        checkpoint=ended.checkpoint,
        model=ready.export_uri if exported else None,
        record=ready.record_link(),
        error=ended.reason if ended.status == "failed" else note,
        exit_code=codes[ended.status],
    )


def _aborted(ready: Prepared, stop: StopRequests) -> Outcome:
    ready.folder.update(status="stopped", reason="stopped at once by the user")
    return _without_end(ready, "stopped", "stopped at once; steps since the last checkpoint are lost", stop.exit_code)


def _died(ready: Prepared, error: Exception) -> Outcome:
    reason = (
        f"the coordinator died ({str(error).splitlines()[0]}); continue from the last checkpoint with: "
        f"shoal resume {ready.folder.run_id}"
    )
    ready.folder.update(status="failed", reason=reason)
    return _without_end(ready, "failed", reason, TrainingFailed.exit_code)


def _without_end(ready: Prepared, status: Any, error: str, exit_code: int) -> Outcome:
    latest = ready.store.latest()
    return Outcome(
        status=status,
        run_id=ready.folder.run_id,
        folder=str(ready.folder.path),
        step=latest.step if latest else 0,
        checkpoint=latest.uri if latest else None,
        record=ready.record_link(),
        error=error,
        exit_code=exit_code,
    )
