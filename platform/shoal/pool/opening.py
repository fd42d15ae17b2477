"""Opening a pool, looking at it, and finding one by its name."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from shoal.errors import CapacityError, ConfigError
from shoal.job import Job
from shoal.launch.cluster import Connection, Local, connect
from shoal.pool.spec import NAMESPACE, PoolSpec, PoolStatus, pool_name
from shoal.worker.outfit import Kind

ANSWER_S = 60.0
CLOSE_S = 30.0
WARM_S = 300.0
LOOK_S = 0.05
AHEAD_MB = 512
"""Blocks of data that may wait, on a local cluster that is started for a pool."""


@dataclass(frozen=True, slots=True)
class OpenPool:
    """A pool that is open. Runs name it: `RunOptions(pool=pool.name)`."""

    spec: PoolSpec
    connection: Connection
    _actor: Any

    @property
    def name(self) -> str:
        """By which runs name it."""
        return self.spec.name

    def status(self) -> PoolStatus:
        """Who has what."""
        import ray

        return ray.get(self._actor.status.remote(), timeout=ANSWER_S)

    def weigh(self, run_id: str, weight: float) -> None:
        """From now on `run_id` deserves that much of what is free, in proportion to others, who have 1."""
        import ray

        ray.get(self._actor.weigh.remote(run_id, weight), timeout=ANSWER_S)

    def warm_up(
        self, workers: int, *, job: Job | None = None, coordinators: int = 0, timeout_s: float = WARM_S
    ) -> None:
        """Wait until so many workers are at rest, of the kind that `job` needs (default: the pool's own), and so many
        coordinators free. Raises CapacityError if that takes longer."""
        import ray

        kind = Kind.of(job) if job is not None else self.spec.kind
        ray.get(self._actor.warm.remote(workers, kind), timeout=ANSWER_S)
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            there = sum(w.state == "idle" and w.kind == kind for w in status.workers)
            if there >= workers and status.coordinators >= coordinators:
                return
            if time.monotonic() > deadline:
                raise CapacityError(
                    f"only {there} of {workers} workers and {status.coordinators} of {coordinators} coordinators of "
                    f"the pool {self.name!r} are warm after {timeout_s:g} s; the cluster may be too small for it, or "
                    f"the machine overloaded"
                )
            time.sleep(LOOK_S)


@contextmanager
def open_pool(spec: PoolSpec, *, address: str | None = None) -> Iterator[OpenPool]:
    """Open a pool on the cluster at `address` (default: as for a run), for as long as the context lasts.

    Workers start at once, side by side with whatever the caller does. The pool ends with this process, however that
    ends, and its workers end with it. Raises ConfigError if there is a pool of that name, CapacityError if no cluster
    answers.
    """
    import ray

    from shoal.pool.actor import Pool

    per_worker = tuple((name, amount * spec.workers) for name, amount in spec.resources)
    local = Local(spec.workers * spec.cpus + spec.reading_cpus, per_worker, AHEAD_MB)
    with connect(local, address) as connection:
        if pool_name(spec.name) in _pools():
            raise ConfigError(f"there is a pool {spec.name!r} in this cluster already; choose another PoolSpec.name")
        # Beside whoever opens it: shells that it keeps warm must see the same disk.
        place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(connection.node_id, soft=False)
        options = {"name": pool_name(spec.name), "namespace": NAMESPACE, "num_cpus": 0, "max_concurrency": 1000}
        actor: Any = ray.remote(Pool).options(**options, scheduling_strategy=place).remote(spec)
        try:
            ray.get(actor.open.remote(), timeout=ANSWER_S)
            yield OpenPool(spec, connection, actor)
        finally:
            with suppress(ray.exceptions.RayError):  # gone or stuck: its workers notice, too
                ray.get(actor.close.remote(), timeout=CLOSE_S)
            ray.kill(actor, no_restart=True)


def require_pool(name: str, job: Job) -> PoolSpec:
    """The pool of that name in this cluster. Raises ConfigError if there is none, or it can never run `job`."""
    import ray

    try:
        pool: Any = ray.get_actor(pool_name(name), NAMESPACE)
        spec: PoolSpec = ray.get(pool.open.remote(), timeout=ANSWER_S)
    except (ValueError, ray.exceptions.RayError):
        there = [known.removeprefix(pool_name("")) for known in _pools()]
        near = difflib.get_close_matches(name, there, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(there) or 'none'}"
        raise ConfigError(f"there is no pool {name!r} in this cluster; {hint}") from None
    why = spec.refusal(job)
    if why is not None:
        raise ConfigError(why)
    return spec


def host_of(run_id: str) -> str | None:
    """Name of the actor of the coordinator that hosts the run, in whatever pool of this cluster; None: in none."""
    import ray

    for name in _pools():
        with suppress(ValueError, ray.exceptions.RayError):  # a pool that has just gone hosts nothing
            pool: Any = ray.get_actor(name, NAMESPACE)
            host = ray.get(pool.host_of.remote(run_id), timeout=ANSWER_S)
            if host is not None:
                return host
    return None


def _pools() -> list[str]:
    """Names of the actors of all pools; those of their workers end in a number."""
    from shoal.worker.places import named_actors

    return [name for name in named_actors(pool_name("")) if "/" not in name]
