"""One Ray cluster and one pool of warm workers for all tests that ask for them: starting processes takes seconds.

What a run leaves is looked for when the cluster goes down: nothing but the pool may be there.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack

import shoal
from shoal.pool import OpenPool, PoolSpec, open_pool
from shoal.ray_compat import quiet_driver

CPUS = 12
WORKERS = 5
GONE_S = 60.0
"""Feeds and workers of a coordinator that was killed go within a quarter of a minute; a machine may be busy."""


class SharedCluster:
    """Up or down; tests that start a cluster of their own take it down."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._pool: OpenPool | None = None

    def up(self) -> None:
        """Have it up."""
        if self._pool is not None:
            return
        import ray

        os.environ.setdefault("RAY_worker_niceness", "0")
        # Workers unpickle tasks that are defined in tests/.
        paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
        ray.init(
            address="local",  # a new one, also where somebody else has started one on the machine
            num_cpus=CPUS,
            object_store_memory=300 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=40,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
        )
        quiet_driver()  # as where Shoal connects by itself
        self._stack.callback(ray.shutdown)
        self._pool = self._stack.enter_context(open_pool(PoolSpec(workers=WORKERS, warm=0, name="shared")))

    def down(self) -> None:
        """Have it down. Fails if something is left of the runs that were there."""
        if self._pool is None:
            return
        try:
            _wait_until_gone()
        finally:
            self._pool = None
            self._stack.close()

    def pool_for(self, job: shoal.Job, workers: int = 0) -> str | None:
        """The pool, if it is there and can give `job` all the workers that it wants; they, and `workers` at least, are
        at rest then, so that the run begins with all of them."""
        pool = self._pool
        if pool is None or job.workers.max > WORKERS or pool.spec.refusal(job) is not None:
            return None
        pool.warm_up(max(workers, job.workers.max), job=job)
        return pool.name


SHARED = SharedCluster()


def _wait_until_gone() -> None:
    deadline = time.monotonic() + GONE_S
    while left := [n for n in _names() if not n.startswith("shoal-pool-shared")]:
        assert time.monotonic() < deadline, f"runs have left {left}"
        time.sleep(0.2)


def _names() -> list[str]:
    import ray

    return [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "shoal"]
