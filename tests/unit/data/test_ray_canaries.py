"""Canaries: fail when a Ray release changes what shoal.ray_compat stands on. No cluster needed."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys

import pytest

from shoal import ray_compat
from shoal.errors import DataError

pytestmark = pytest.mark.unit


def test_ray_data_still_has_what_the_pipeline_stands_on() -> None:
    from ray.data import DataContext, Dataset, Datasource, ExecutionResources, ReadTask, read_datasource  # noqa: F401
    from ray.data.block import BlockMetadata

    context = DataContext.get_current().copy()
    for name in (
        "enable_progress_bars",
        "target_max_block_size",
        "execution_no_progress_timeout_s",
        "custom_execution_callback_classes",
    ):
        assert hasattr(context, name), name
    assert hasattr(context.issue_detectors_config, "detectors")
    for name in ("preserve_order", "resource_limits", "label_selector", "verbose_progress"):
        assert hasattr(context.execution_options, name), name
    assert {"override_num_blocks", "num_cpus", "ray_remote_args"} <= set(inspect.signature(read_datasource).parameters)
    assert callable(Dataset.iter_internal_ref_bundles)
    assert {"num_rows", "size_bytes", "input_files", "exec_stats"} <= set(inspect.signature(BlockMetadata).parameters)


def test_an_execution_rests_while_nobody_wants_more_and_its_tasks_know_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import threading

    from ray import cloudpickle
    from ray.data import DataContext
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    monkeypatch.setattr(ray_compat, "REST_S", 1e9)
    wanted = threading.Event()
    context = DataContext.get_current().copy()
    context.custom_execution_callback_classes = [ray_compat.Rest(wanted)]  # type: ignore[list-item]
    made = context.copy().execution_callback_classes[-1]()
    assert isinstance(made, ExecutionCallback)
    step = threading.Thread(target=made.on_execution_step, args=(None,), daemon=True)
    step.start()
    assert step.is_alive()
    wanted.set()
    step.join(10)
    assert not step.is_alive()
    wanted.clear()
    elsewhere = cloudpickle.loads(cloudpickle.dumps(context)).execution_callback_classes[-1]()
    elsewhere.on_execution_step(None)


def test_bundles_still_hold_references_with_metadata() -> None:
    from ray.data._internal.execution.interfaces import RefBundle
    from ray.data._internal.execution.interfaces.ref_bundle import BlockEntry

    assert "blocks" in RefBundle.__annotations__ or hasattr(RefBundle, "blocks")
    assert {"ref", "metadata"} <= set(BlockEntry.__dataclass_fields__)


def test_ray_data_still_prints_through_its_own_console_handler() -> None:
    import ray.data  # noqa: F401

    streams = [h for h in logging.getLogger("ray.data").handlers if isinstance(h, logging.StreamHandler)]
    assert streams
    before = [h.level for h in streams]
    with ray_compat.quiet_data():
        assert all(h.level == logging.ERROR for h in streams)
    assert [h.level for h in streams] == before


def test_causes_are_found_behind_rays_wrappers() -> None:
    from ray.exceptions import RayTaskError

    inner = DataError("b.parquet is gone")
    task = RayTaskError("read", "a traceback", inner).as_instanceof_cause()
    outer = RuntimeError("pipeline")
    outer.__cause__ = task
    assert str(ray_compat.find_cause(outer, DataError)) == "b.parquet is gone"
    assert ray_compat.find_cause(RuntimeError("other"), DataError) is None


def test_what_nodes_report_can_be_kept_out_of_stdout() -> None:
    code = (
        "from ray._private.worker import print_to_stdstream as say; from shoal.ray_compat import quiet_driver; "
        "report = lambda text: say({'lines': [text], 'pid': 'raylet', 'is_err': False}, ignore_prefix=False); "
        "report('before'); quiet_driver(); report('after')"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": "platform"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert "before" in child.stdout
    assert "after" not in child.stdout


def test_a_process_that_has_loaded_ray_can_still_show_its_token() -> None:
    code = (
        "import ray; from ray._raylet import AuthenticationMode, get_authentication_mode as mode; "
        "from shoal.ray_compat import auth_mode, use_auth_mode; "
        "use_auth_mode(''); assert mode() == AuthenticationMode.DISABLED; "
        "use_auth_mode('token'); assert mode() == AuthenticationMode.TOKEN; assert auth_mode() == 'token'; "
        "use_auth_mode('disabled'); assert mode() == AuthenticationMode.TOKEN, 'the environment goes first'"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
    subprocess.run([sys.executable, "-c", code], env={**environment, "PYTHONPATH": "platform"}, check=True)


def test_a_job_still_says_what_modules_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    assert ray_compat.job_modules() == []
    for said, modules in (('{"runtime_env": {"py_modules": ["gcs://a.zip"]}}', ["gcs://a.zip"]), ("{}", [])):
        monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, said)
        assert ray_compat.job_modules() == modules


def test_the_client_of_jobs_still_looks_at_the_environment_first() -> None:
    from ray.dashboard.utils import get_address_for_submission_client

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://there:1")
        assert get_address_for_submission_client("http://elsewhere:2") == "http://there:1"
