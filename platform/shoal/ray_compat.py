"""The one place for what Ray does not promise to keep: names and behaviour that a minor release may change.

Tested with Ray 2.60. What is used here has canary tests (tests/unit/data/test_ray_canaries.py), which fail when
Ray changes under it.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError

if TYPE_CHECKING:
    import ray
    from ray.data import Dataset, Datasource
    from ray.util.placement_group import PlacementGroup

LOCAL_SETTINGS = {
    # Ray gives its workers a lower priority than the shell's; on a machine that is ours alone that only costs time.
    "RAY_worker_niceness": "0",
    # A local cluster has no dashboard that would show these; together they cost a tenth of a core with ten processes.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    # Look for new log files twice a second, as with many of them, not ten times: that took 1 % of a core.
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
}
"""Ray's own settings for a cluster that lives and dies with one run on this machine; what the user has set wins."""

TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the other output has a banner that no verbosity silences
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the first Ctrl-C asks trials for a checkpoint, which Tune's own does not
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files beside a record that has it all
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "30",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # a sweep is resumed from its own ledger
}
"""Ray Tune has no arguments for these; it looks at the environment when a sweep begins."""

NICE = 5
AUTOSCALER_ANSWERS_S = 5
REST_S = 0.5
"""An execution that rests looks around so often."""

_BUILDING = threading.Lock()
"""`DataContext.current()` swaps a variable of the whole process."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block that Ray Data has produced, still in the object store. Dropping `ref` frees it."""

    ref: ray.ObjectRef
    rows: int
    nbytes: int


def auth_mode() -> str:
    """How this process shows itself to Ray: `token`, or "" where nobody asked for that."""
    return os.environ.get("RAY_AUTH_MODE", "")


def use_auth_mode(mode: str) -> None:
    """Join clusters as `mode` says, unless the environment says something else.

    From 2.60 on a cluster that `ray.init()` starts asks for Ray's token, and a process that joins it by its address
    shows it only if RAY_AUTH_MODE=token was set before Ray was loaded; refreshing the settings makes up for that.
    """
    if not mode or "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = mode
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")


def quiet_driver() -> None:
    """Keep what nodes report out of this process's stdout: that a worker died is told by the run itself, in its words.

    Ray 2.60 prints that to stdout, in the middle of the display or of the JSON, whatever `log_to_driver` says.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False


def quiet_tune() -> None:
    """Ray Tune as `TUNE_SETTINGS` say, and silent: the sweep itself shows its trials."""
    os.environ.update(TUNE_SETTINGS)
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def yield_to_training() -> None:
    """Give way to the workers wherever they share a core with this process.

    Leases run ahead by a second and blocks by many steps, so the coordinator and the feed can wait where a training
    step cannot: every core that is taken from one member holds up all of them.
    """
    os.nice(NICE)


def quiet_data_process() -> None:
    """Make Ray Data silent in a process that does nothing but feed: no banners, no hints, no known deprecations."""
    from ray.util.annotations import RayDeprecationWarning

    os.environ["RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"] = "0"  # the pump blocks in a thread, never in the event loop
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    for handler in _console_handlers():
        handler.setLevel(logging.ERROR)


@contextmanager
def quiet_data() -> Iterator[None]:
    """Ray Data prints nothing but errors inside the block; its log files stay complete."""
    levels = [(handler, handler.level) for handler in _console_handlers()]
    for handler, _ in levels:
        handler.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for handler, level in levels:
            handler.setLevel(level)


class Rest:
    """Lets executions of Ray Data rest while nobody wants more of them, as long as `wanted` is not set.

    Ray's loop waits for tasks that run. Those that have blocks to give which nobody takes yet count as done, and so it
    does not wait at all: in a run whose data is far ahead it takes a quarter of a core (2.60).
    """

    def __init__(self, wanted: threading.Event | None = None) -> None:
        self._wanted = wanted

    def __call__(self) -> Any:
        """One execution's callback: Ray Data makes it from a class, and travels with it to the tasks."""
        from ray.data._internal.execution.execution_callback import ExecutionCallback

        wanted = self._wanted

        class Resting(ExecutionCallback):
            def on_execution_step(self, executor: Any) -> None:
                if wanted is not None:
                    wanted.wait(REST_S)

        return Resting()

    def __deepcopy__(self, memo: Any) -> Rest:
        return self  # contexts are copied; the event is one

    def __reduce__(self) -> Any:
        return Rest, ()


def read_in_order(
    source: Datasource,
    then: Callable[[Any], Iterator[Any]] | None = None,
    *,
    tasks: int,
    cpus: float,
    task_cpus: float,
    group: PlacementGroup | None,
    held_bytes: int,
    wanted: threading.Event | None = None,
) -> Dataset:
    """A data set whose `tasks` read tasks run inside `group`, at most `cpus` CPUs at once, blocks in task order.

    While `wanted` is there and not set the execution does as little as it can.

    `then` makes Arrow tables of those that were read, in the same tasks: Ray Data joins both steps, because they ask
    for the same resources (a cluster test looks). What it raises comes out as it is (`find_cause`).

    The strategy of the read tasks goes through `ray_remote_args`, which Ray 2.60 calls deprecated without another way
    to put read tasks into a placement group (`DataContext.scheduling_strategy` would also set the executor's object
    store budget to the group's, which is zero).
    """
    import ray.data
    from ray.data import DataContext, ExecutionResources
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with _BUILDING:
        context = DataContext.get_current().copy()
        _calm(context)
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            cpu=cpus, object_store_memory=held_bytes
        )
        context.target_max_block_size = max(1 << 20, min(16 << 20, held_bytes // 4))
        context.raise_original_map_exception = True
        context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, Rest(wanted)]  # type: ignore[list-item]
        arguments = {"scheduling_strategy": PlacementGroupSchedulingStrategy(group)} if group is not None else {}
        with DataContext.current(context):
            rows = ray.data.read_datasource(
                source, override_num_blocks=tasks, num_cpus=task_cpus, ray_remote_args=arguments
            )
            if then is None:
                return rows
            return rows.map_batches(then, batch_size=None, batch_format="pyarrow", num_cpus=task_cpus, **arguments)


def map_in_order(tasks: int, convert: Callable[[int], dict[str, list[Any]]], *, node_id: str | None) -> Dataset:
    """A data set of `convert(0)`, `convert(1)`, ...: a task and a row each, in order; `node_id`: only there."""
    import ray.data
    from ray.data import DataContext

    with _BUILDING:
        context = DataContext.get_current().copy()
        _calm(context)
        context.execution_options.preserve_order = True
        if node_id is not None:
            context.execution_options.label_selector = {"ray.io/node-id": node_id}
        with DataContext.current(context):
            numbers = ray.data.range(tasks, override_num_blocks=tasks)
            return numbers.map_batches(lambda batch: convert(int(batch["id"][0])), batch_size=None)


def blocks(dataset: Dataset) -> Iterator[Block]:
    """Run `dataset`; yield its blocks as references, in order. Dropping the iterator ends the execution.

    Blocks until the first one is there. `iter_internal_ref_bundles` is a developer API.
    """
    bundles = dataset.iter_internal_ref_bundles()
    return (
        Block(entry.ref, entry.metadata.num_rows, entry.metadata.size_bytes or 0)
        for bundle in bundles
        for entry in bundle.blocks
        if entry.metadata.num_rows
    )


def find_cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first exception of `kind` behind `error`, through Ray's and Python's wrappers."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        inner = getattr(current, "cause", None)  # RayTaskError keeps what was raised in the task here
        # A RayTaskError poses as its cause's class, but only the cause has the plain message.
        if isinstance(current, kind) and not isinstance(inner, kind):
            return current
        waiting += [inner if isinstance(inner, BaseException) else None, current.__cause__, current.__context__]
    return None


def _console_handlers() -> list[logging.Handler]:
    import ray.data  # noqa: F401 - sets up the logger

    return [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]


def _calm(context: Any) -> None:
    context.enable_progress_bars = False
    context.execution_options.verbose_progress = False
    # Training may pause for as long as it takes the cluster to give workers; that is no hang of the data.
    context.execution_no_progress_timeout_s = -1
    context.issue_detectors_config.detectors = []


def actor_id(handle: Any) -> str:
    """The identity of an actor, in hex: the same after a restart, another for another actor of the same name."""
    return handle._actor_id.hex()


def draining_nodes() -> dict[str, float]:
    """Nodes that were told to go (a spot notice, a node that the autoscaler takes back): id (hex) -> Unix seconds when
    they will; 0: nobody said."""
    from ray._private.state import state

    return {node: deadline_ms / 1e3 for node, deadline_ms in state.get_draining_nodes().items()}


def head_client(address: str) -> tuple[Any, Any]:
    """Clients of the cluster's head at `address`, by which one who has not joined it asks: of nodes and drains, on
    which `ray drain-node` stands, and of actors. Raise RayError if it does not answer."""
    from ray._private.state import GlobalState
    from ray._raylet import GcsClient, GcsClientOptions  # type: ignore[attr-defined]

    state = GlobalState()
    options = GcsClientOptions.create(address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=True)
    state._initialize_global_state(options)
    return GcsClient(address=address), state


def cluster_address(address: str | None) -> str | None:
    """`host:port` of the cluster that is meant: `address`, else RAY_ADDRESS, else the one that `ray start` has made
    this machine a part of; None: there is none."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return canonicalize_bootstrap_address(address or "auto")
    except (ConnectionError, ValueError, OSError):
        return None


def free_amounts() -> dict[str, dict[str, float]]:
    """What is free on each node: id (hex) -> amounts by resource. It can be some tenths of a second old."""
    from ray._private.state import available_resources_per_node

    return available_resources_per_node()


def autoscaler_says() -> str:
    """What the cluster's autoscaler makes of what it was asked for, as the end of a sentence; "": it says nothing, or
    there is none. Only Ray's second autoscaler tells it."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address, AUTOSCALER_ANSWERS_S)
    except Exception:  # noqa: BLE001 - a developer API, asked for a sentence in a message that stands without it
        return ""
    coming = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    parts = [f"is adding {coming} nodes"] if coming else []
    parts += [f"could not add {failed.ray_node_type_name} ({failed.details})" for failed in status.failed_launches[-1:]]
    return " and ".join(parts)


def job_client(address: str) -> Any:
    """Ray's client of the job server at `address`. Raises what Ray does if that does not answer, or refuses us.

    Ray 2.60 takes the addresses in the environment first, whatever its caller says; and it tells of uploads by its log.
    """
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)
    said = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        headers = os.environ.get("RAY_JOB_HEADERS")
        return JobSubmissionClient(None, headers=json.loads(headers) if headers else None)
    finally:
        if said is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = said


def job_modules() -> list[str]:
    """Modules that the Ray job around this process brings to all of its nodes; empty: none, or there is no such job."""
    said = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return list((said.get("runtime_env") or {}).get("py_modules") or ())


def cluster_schema() -> dict[str, Any]:
    """Ray's own JSON schema of the files that `ray up` takes."""
    import ray.autoscaler

    return json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())


def filled_out(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of `ray up` with Ray's defaults, after all checks that Ray makes before it asks a cloud.

    Raises ConfigError with Ray's words for what these refuse.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    words = io.StringIO()
    try:
        with redirect_stdout(words), redirect_stderr(words):
            whole = prepare_config(copy.deepcopy(config))
            validate_config(whole)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - Ray refuses in many ways; its words go to the user
        said = str(getattr(error, "message", error)).strip() or words.getvalue().strip() or type(error).__name__
        raise ConfigError(f"Ray refuses this: {said.splitlines()[-1]}") from None
    return whole


def azure_parameters() -> dict[str, str]:
    """What Ray's template for a machine of Azure takes: name -> type."""
    import ray.autoscaler._private as there

    template = json.loads((Path(there.__path__[0]) / "_azure" / "azure-vm-template.json").read_text())
    found = {name: str(said["type"]) for name, said in template["parameters"].items()}
    return {**found, "availability_zone": "string"}  # which Ray itself turns into `zones`


def version() -> str:
    """Ray's version here."""
    import ray

    return ray.__version__
