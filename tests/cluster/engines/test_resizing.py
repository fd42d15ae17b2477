"""Many changes of the view in the same processes: of everything that could pile up, nothing does."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from shoal.membership.messages import ViewOrder
from shoal.worker.group import dissolve_group, form_group
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import ENGINES, make_job, state_of
from tests.support.process_pool import ProcessPool
from tests.support.view_members import LIMIT_S, Crew, Fault, live

pytestmark = pytest.mark.cluster

WARM_UP, CHANGES = 15, 35
"""Per engine, in the same processes: 200 in all."""
KINDS = (
    "DistributedDataParallel", "DeepSpeedEngine", "DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3",
    "PartitionedParameterCoordinator", "ProcessGroup", "ProcessGroupGloo", "PrefixStore", "Meeting", "Work", "Thread",
)  # fmt: skip


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    pool = ProcessPool(4, preload="tests.support.warm")
    yield Crew(pool)
    pool.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_piles_up(crew: Crew, engine: str) -> None:
    job = make_job(tasks.Language(), engine, options={"precision": "bf16"})
    crew.start([0], live, job, (0, 2))
    state = state_of(crew.told([0]))
    change(crew, job, state, WARM_UP)
    before = held(crew)
    change(crew, job, state, CHANGES)
    after = held(crew)
    for was, now in zip(before, after, strict=True):
        assert now.pop("megabytes") - was.pop("megabytes") < 8
        assert now == was


def change(crew: Crew, job: Any, state: Any, count: int) -> None:
    """Views of 4, 1, 3, 2, ... members; of those with peers every second breaks, each time elsewhere."""
    for i in range(count):
        members = [(i + k) % 4 for k in range((4, 1, 3, 2)[i % 4])]
        breaks = len(members) > 1 and i // 4 % 2 == 0
        phase = ("forward", "backward", "update")[i % 3]
        fault = Fault(members[-1], 3, phase, signal=0) if breaks else None  # type: ignore[arg-type]
        crew.start(members, live, job, (2, 3), state, fault)
        # Who had applied its step before the break may have found the view whole.
        assert breaks == any(told.error is not None for told in crew.told(members))


def held(crew: Crew) -> list[dict[str, int]]:
    out = []
    for member in range(4):
        crew.start([member], count_things)
        out += crew.told([member])
    return out


def count_things(kept: dict[str, Any], order: ViewOrder) -> dict[str, int]:
    """What could pile up in this process. A view of its own pushes out what the last one has left."""
    form_group(order, torch.device("cpu"), kept["store"], LIMIT_S)
    dissolve_group()
    dissolve_group()
    settle()
    gc.unfreeze()  # what the engines have taken out of the collector's sight counts, too
    objects = gc.get_objects()
    kinds = Counter(type(o).__name__ for o in objects)
    modules = sum(isinstance(o, torch.nn.Module) for o in objects)
    del objects
    gc.freeze()
    process = psutil.Process()
    return {
        **{kind: kinds[kind] for kind in KINDS},
        "modules": modules,
        "groups": len(dist.distributed_c10d._world.pg_map),
        "groups' names": dist.distributed_c10d._world.group_count,
        "wrapped excepthooks": int(sys.excepthook is not sys.__excepthook__),
        "keys": len(kept["store"]),
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "megabytes": process.memory_info().rss >> 20,
    }


def settle() -> None:
    deadline = time.monotonic() + 30
    while any(t.name in ("shoal-bury", "shoal-cut", "shoal-wait") for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
