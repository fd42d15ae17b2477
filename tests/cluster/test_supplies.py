"""What a run may expect of whoever gives it workers, whether that is the cluster or a pool."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import shoal
from shoal.coordinator.pooled import PoolSupply
from shoal.coordinator.supply import ClusterSupply, Recruit, Supply
from shoal.pool import PoolSpec, open_pool
from shoal.pool.spec import NAMESPACE, Ask, pool_name
from shoal.worker.places import looked_at
from tests.support.conductor import until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

WORKERS = shoal.Workers(min=1, max=2)
DEADLINE_S = 60.0


@ray.remote(num_cpus=0)
class Coordinator:
    """An actor of the name that workers live for, with a supply in it."""

    def __init__(self, key: str, pool: str | None) -> None:
        # What a supply wants to know of a plan.
        job = SimpleNamespace(workers=WORKERS, batch=shoal.Batch(size=8, virtual_shards=8), numerics="fast")
        plan: Any = SimpleNamespace(key=key, run_id=key, coordinator=key, job=job)
        self._have: dict[str, Recruit] = {}
        self._supply: Supply = (
            PoolSupply(pool, plan, lambda: None) if pool is not None else ClusterSupply(f"{key}-", WORKERS, key)
        )

    async def process(self) -> int:
        return os.getpid()

    async def have(self, count: int) -> list[str]:
        """Want `count` until they are there and answer; returns their names."""
        self._supply.want(count, len(self._have))
        while len(self._have) < count:
            for recruit in await asyncio.wait_for(self._supply.recruits(), DEADLINE_S):
                self._have[recruit.id] = recruit
        for recruit in self._have.values():
            assert (await recruit.actor.standing.remote()).run is None, "it serves nobody yet"
        return list(self._have)

    async def give_back(self, recruit: str, fit: bool) -> None:
        self._supply.take_back(self._have.pop(recruit), fit=fit)

    async def allotted(self) -> int | None:
        return self._supply.allotted

    async def find(self) -> list[str]:
        found = await self._supply.find()
        places = [(await r.actor.standing.remote()).place for r in found]
        self._have = {r.id: replace(r, place=place) for r, place in zip(found, places, strict=True)}
        self._supply.keep(list(self._have.values()))
        return list(self._have)

    async def word(self) -> Ask | None:
        """What it says to its pool."""
        return self._supply.ask(frozenset()) if isinstance(self._supply, PoolSupply) else None

    async def close(self) -> None:
        for recruit in list(self._have):
            await self.give_back(recruit, True)
        self._supply.close()

    async def shortage(self) -> str:
        return self._supply.shortage(0)


@contextmanager
def from_cluster() -> Iterator[tuple[str | None, Callable[[], int]]]:
    def there() -> int:
        return sum(a["name"].startswith("contract-") for a in ray.util.list_named_actors(all_namespaces=True))

    yield None, there


@contextmanager
def from_pool() -> Iterator[tuple[str | None, Callable[[], int]]]:
    with open_pool(PoolSpec(workers=2, name="contract", runs=0)) as pool:
        yield pool.name, lambda: sum(w.state == "lent" for w in pool.status().workers)


@pytest.mark.parametrize("source", [from_cluster, from_pool])
def test_the_contract(source: Any) -> None:
    with source() as (pool, taken):
        options = {"name": "contract", "namespace": NAMESPACE, "max_restarts": 1, "max_task_retries": -1}
        run: Any = Coordinator.options(**options).remote("contract", pool)

        def ask(what: str, *arguments: Any) -> Any:
            return ray.get(getattr(run, what).remote(*arguments), timeout=2 * DEADLINE_S)

        first, second = ask("have", 2)
        assert ask("allotted") in (None, 2)
        assert first != second
        assert "workers.min=1" in ask("shortage")
        ask("give_back", second, False)
        kept, third = ask("have", 2)
        assert kept == first
        assert third not in (first, second), "one that is not fit does not come again"
        process = ask("process")
        ray.kill(run, no_restart=False)
        until(lambda: ask("process") != process)  # it has forgotten everything
        assert sorted(ask("find")) == sorted([first, third])
        ask("give_back", third, True)
        assert ask("have", 1) == [first]
        until(lambda: taken() == 1)
        word = ask("word")
        ask("close")
        if word is not None:  # it was under way: calls to a pool may overtake each other
            pooled: Any = ray.get_actor(pool_name("contract"), NAMESPACE)
            ray.get(pooled.sync.remote(word), timeout=DEADLINE_S)
            assert ray.get(pooled.status.remote(), timeout=DEADLINE_S).runs == (), "it has no claim any more"
        until(lambda: taken() == 0)
        ray.kill(run)


def test_ray_says_of_a_place_that_was_taken_back_that_it_is_not_there() -> None:
    place = ray.util.placement_group([{"CPU": 0.001}])
    assert ray.get(place.ready(), timeout=DEADLINE_S) is not None
    ray.util.remove_placement_group(place)
    until(lambda: looked_at([place]) == ([], [place]))
