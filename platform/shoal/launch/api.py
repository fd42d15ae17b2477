"""Run a job: what `shoal train` and `shoal.train` both call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shoal.coordinator.status import Display, Outcome
from shoal.errors import ConfigError, RunOver
from shoal.job import Job
from shoal.launch.cluster import Local, connect, starts_local
from shoal.launch.prepare import Prepared, prepare
from shoal.launch.signals import StopRequests
from shoal.pool.opening import require_pool
from shoal.ray_compat import auth_mode

if TYPE_CHECKING:
    from shoal.job.recipe import Recipe
    from shoal.launch.cluster import Connection
    from shoal.logs import Style
    from shoal.optim.range_test import Divergence
    from shoal.state.store import CheckpointInfo
    from shoal.tracking.settings import TrialOf


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
    new_data: bool = False
    """Continue although the data, or their order, are not those of the checkpoint: in a new run."""
    fork_at: int | None = None
    """With `resume`: begin a new run from that run's checkpoint of this step, though the old one may go on."""
    storage_uri: str | None = None
    """Where checkpoints and the exported model go; default: the run folder."""
    if_detached: Literal["stop", "continue"] = "stop"
    """What the run does, on a cluster that outlives this process, when this process ends before it."""
    driver_silence_s: float = 60.0
    """How long after the end of this process that is done."""
    until_step: int | None = None
    """Stop after this step, with a checkpoint, whatever the budget."""
    replay: Path | None = None
    """A ledger; the steps that it has take the same course again."""
    divergence: Divergence | None = None
    """Stop in the same way once the loss does this."""
    scratch: Path | None = None
    """Make the run's folder here, record nothing in MLflow, and begin with `start_from`."""
    pool: str | None = None
    """Name of the pool that lends the workers (`shoal.pool.open_pool`); None: the cluster gives them."""
    start_from: CheckpointInfo | None = None
    """Only with `scratch`: the checkpoint to begin with; None: the initial weights."""
    trial: TrialOf | None = None
    """The run is a trial of this sweep: its record lies below the sweep's."""
    log_format: Style = "text"
    """How coordinator and workers write their log lines."""
    recipe: Recipe | None = None
    overrides: tuple[str, ...] = ()


def run_job(job: Job, *, options: RunOptions, display: Display) -> Outcome:
    """Run `job` to its end and say how it ended.

    Raises ConfigError, DataError, CheckpointError or CapacityError for what is wrong before training starts; what
    goes wrong later is told by the outcome.
    """
    with _prepared(job, options, display) as (ready, connection), StopRequests() as stop:
        # Inside the connection: Ray's own handlers come with it and would end this process at the first signal.
        outcome = _supervise(ready, connection, display, stop)
    display.finished(outcome)
    return outcome


def submit_job(job: Job, *, options: RunOptions, display: Display) -> str:
    """Start `job` on a cluster that outlives this process, and return the run's id without waiting for its end.

    Raises as `run_job` does, and ConfigError if the cluster would end with this process.
    """
    from shoal.launch.supervise import start

    with _prepared(job, options, display) as (ready, connection):
        _introduce(ready, connection, display)
        start(ready, connection)
    return ready.folder.run_id


@contextmanager
def _prepared(job: Job, options: RunOptions, display: Display) -> Iterator[tuple[Prepared, Connection]]:
    """Everything is checked before a cluster is touched; of a pool that is there already, after."""
    _may_outlive(options)
    with ExitStack() as stack:
        if options.pool is not None:
            stack.enter_context(connect(Local.of(job), options.address))
            require_pool(options.pool, job)
        ready = prepare(job, options)
        display.event("info", "connecting to Ray")
        yield ready, stack.enter_context(connect(Local.of(job), options.address))


def _may_outlive(options: RunOptions) -> None:
    if options.if_detached == "continue" and starts_local(options.address):
        raise ConfigError(
            "this run cannot outlive its command: the cluster would be started here for it, and ends with it. Start a "
            "cluster that stays (`ray start --head`) and name it with --address auto, or leave out --detach and "
            "--if-detached continue"
        )


def _introduce(ready: Prepared, connection: Connection, display: Display) -> None:
    exported = ready.export_uri if ready.job.checkpoints.export else None
    ready.folder.update(address=connection.address, local=connection.local, auth=auth_mode(), export_uri=exported)
    display.started(ready.introduction(connection))


def _supervise(ready: Prepared, connection: Connection, display: Display, stop: StopRequests) -> Outcome:
    import ray

    from shoal.launch import supervise

    _introduce(ready, connection, display)
    try:
        post = supervise.start(ready, connection)
        ended = supervise.follow(post, display, stop)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, RunOver) as error:
        return supervise.died(ready.folder, error)
    # Only now: if this process ends in any other way, the coordinator notices and does what `if_detached` says.
    if ended is None:
        post.end()
        return supervise.aborted(ready.folder, stop)
    post.let_go()
    return supervise.outcome(ready.folder, ended, stop.exit_code)
