"""A replicated member whose peer dies has applied a step wholly or not at all, and goes on from there; a sharded one
can take the step again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist

from shoal.engines import make_engine
from shoal.engines.reduction import TreeReduction
from shoal.job import Job
from shoal.optim.schedules import learning_rate
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import EXACT, difference, digest_of, make_job, state_of
from tests.support.engine_runs import TOTAL, plain, reader, run_step, train
from tests.support.process_pool import ProcessPool, RemoteFailure

pytestmark = pytest.mark.cluster

CASES: tuple[tuple[Literal["fast", "exact"], str], ...] = (
    ("fast", "after its gradients"),
    ("exact", "after its gradients"),
    ("exact", "before it delivers"),
    ("exact", "before the last words"),
)


SHARDED = ("zero1", "zero3")


@pytest.fixture(scope="module")
def mortals() -> Iterator[ProcessPool]:
    """Two that live, and one for each case to die."""
    pool = ProcessPool(2 + len(CASES) + len(SHARDED), numerics="exact")
    yield pool
    pool.close()


@pytest.mark.parametrize("case", range(len(CASES)), ids=[" ".join(case) for case in CASES])
def test_nothing_of_a_step_is_applied_when_a_peer_dies_in_it(mortals: ProcessPool, case: int) -> None:
    numerics, moment = CASES[case]
    job = replace(make_job(tasks.Demanding(width=61), "replicated"), numerics=numerics)
    with pytest.raises(RemoteFailure, match="the process died"):
        mortals.run(lose_a_peer, job, moment, members=[0, 1, 2 + case])
    for before, after, applied in mortals.run(witness, members=[0, 1]):
        assert before == after
        assert applied == 2
    shards = mortals.run(finish, job, members=[0, 1])
    if numerics == "exact":
        undisturbed = mortals.run(train, job, (0, 5), members=[0])
        assert digest_of(shards) == digest_of(state_of(undisturbed))
    else:
        parameters = mortals.run(train, job, (0, 5), members=[0])[0].parameters
        assert difference(parameters, {n: plain(job, 5, by_shard=True)[0][n] for n in parameters}) < 100 * EXACT


@pytest.mark.parametrize("engine", SHARDED)
def test_a_sharded_step_in_which_a_peer_died_can_be_taken_again(mortals: ProcessPool, engine: str) -> None:
    job = replace(make_job(tasks.Demanding(width=61), engine), numerics="exact")
    members = [0, 1, 2 + len(CASES) + SHARDED.index(engine)]
    undisturbed = mortals.run(train, job, (0, 5), members=members)
    state = state_of(mortals.run(train, job, (0, 2), members=members))
    with pytest.raises(RemoteFailure, match="the process died"):
        mortals.run(lose_a_sharded_peer, job, state, members=members)
    outcomes = mortals.run(train, job, (2, 5), state=state, members=[0, 1])
    assert digest_of(state_of(outcomes)) == digest_of(state_of(undisturbed))


def lose_a_sharded_peer(kept: dict[str, Any], rank: int, size: int, job: Job, state: Any) -> None:
    """A step in which rank 2 dies when it has added up its part."""
    engine = kept["engine"]
    engine.form(rank, size)
    try:
        engine.write_state(reader(state), state[0].scalars, state[0].buffers)
        run_step(engine, job, rank, size, 3)
        if rank == 2:
            TreeReduction._deliver = lambda *args: os._exit(1)  # type: ignore[method-assign]
        with pytest.raises(RuntimeError):
            engine.update(0.01)
    finally:
        engine.leave()


def lose_a_peer(kept: dict[str, Any], rank: int, size: int, job: Job, moment: str) -> None:
    """Two steps, then one in which rank 2 dies at that moment; the others keep what they see."""
    engine = make_engine(job, torch.device("cpu"))
    kept.update(job=job, engine=engine)
    engine.form(rank, size)
    try:
        advance(kept, rank, size, (0, 2))
        before = digest_of([engine.offered(0, 1)])
        run_step(engine, job, rank, size, 3)
        if rank == 2:
            die = lambda *args: os._exit(1)  # noqa: E731
            if moment == "before it delivers":
                TreeReduction._deliver = die  # type: ignore[method-assign]
            elif moment == "before the last words":
                dist.all_gather = die
            else:
                die()
        with pytest.raises(RuntimeError):
            engine.update(0.01)
    finally:
        engine.leave()
    kept["witness"] = (before, digest_of([engine.offered(0, 1)]), engine.applied)


def witness(kept: dict[str, Any], rank: int, size: int) -> tuple[str, str, int]:
    """What a survivor saw."""
    return kept["witness"]


def finish(kept: dict[str, Any], rank: int, size: int, job: Job) -> Any:
    """The lost step and two more, by the survivors."""
    kept["engine"].form(rank, size)
    try:
        advance(kept, rank, size, (2, 5))
        return kept["engine"].read_state()
    finally:
        kept["engine"].leave()


def advance(kept: dict[str, Any], rank: int, size: int, steps: tuple[int, int]) -> None:
    """Steps (done, stop]."""
    job, engine = kept["job"], kept["engine"]
    for step in range(steps[0] + 1, steps[1] + 1):
        run_step(engine, job, rank, size, step)
        engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL))
