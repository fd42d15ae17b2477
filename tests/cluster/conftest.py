"""One Ray cluster per module: starting one costs seconds, sharing one across modules would hide what a run leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """Six logical CPUs on this machine; runs started in the test join it."""
    import ray

    os.environ.setdefault("RAY_worker_niceness", "0")
    # Workers unpickle tasks that are defined in tests/.
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=6,
        object_store_memory=300 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=40,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()
