"""The engines' contract on GPUs, with NCCL: one process per device, as many as there are up to four."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shoal.job import Optimizer
from shoal.tasks.base import Task
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import ENGINES, LOOSE, difference, digest_of, make_job, state_of
from tests.support.engine_runs import plain, train
from tests.support.process_pool import ProcessPool

DEVICES = torch.cuda.device_count()

pytestmark = pytest.mark.gpu

NEAR = 1e-4
"""fp32, against plain torch on the CPU: other kernels, so sums in another order."""

each_engine = pytest.mark.parametrize("engine", ENGINES)
sizes = [n for n in (1, 2, 4) if n <= DEVICES]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    pool = ProcessPool(min(4, DEVICES), device_type="cuda")
    yield pool
    pool.close()


@each_engine
@pytest.mark.parametrize("size", sizes)
def test_agrees_with_plain_torch(pool: ProcessPool, engine: str, size: int) -> None:
    job = make_job(tasks.Regression(), engine, optimizer=Optimizer(name="sgd", lr=0.05, clip_norm=0.5))
    outcomes = pool.run(train, job, (0, 50), members=range(size))
    assert difference(outcomes[0].parameters, plain(job, 50)[0]) < NEAR


@each_engine
@pytest.mark.parametrize("size", sizes)
def test_batch_norm_and_bf16(pool: ProcessPool, engine: str, size: int) -> None:
    sgd = Optimizer(name="sgd", lr=0.05)
    for task, precision, limit in ((tasks.Normalizing(), "fp32", NEAR), (tasks.Language(), "bf16", 4 * LOOSE)):
        job = make_job(task, engine, size=32, options={"precision": precision}, optimizer=sgd)
        outcomes = pool.run(train, job, (0, 10), members=range(size))
        right = plain(job, 10, by_shard=True)[0]
        assert difference({**outcomes[0].parameters, **state_of(outcomes)[0].buffers}, right) < limit


def test_random_numbers_are_the_same_on_every_number_of_devices(pool: ProcessPool) -> None:
    for engine in ENGINES:
        job = make_job(tasks.Dropping(), engine)
        found = [pool.run(train, job, (0, 10), members=range(size))[0].parameters for size in sizes]
        assert all(difference(other, found[0]) < NEAR for other in found)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_optimizer_state_in_host_memory(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Partial(), engine, options={"offload": True})
    outcomes = pool.run(train, job, (0, 10), members=range(len(sizes)))
    assert difference(outcomes[0].parameters, plain(job, 10)[0]) < NEAR


def test_state_moves_between_engines(pool: ProcessPool) -> None:
    task = tasks.Partial()
    state = state_of(pool.run(train, make_job(task, "zero3"), (0, 10), members=range(sizes[-1])))
    for engine in ("replicated", "zero1", "zero2", "zero3"):
        outcomes = pool.run(train, make_job(task, engine), (10, 20), members=range(1), state=state)
        assert difference(outcomes[0].parameters, plain(make_job(task, engine), 20)[0]) < NEAR
        assert all(outcome.shard is not None for outcome in outcomes)


@pytest.fixture(scope="module")
def exact_pool() -> Iterator[ProcessPool]:
    pool = ProcessPool(min(4, DEVICES), device_type="cuda", numerics="exact")
    yield pool
    pool.close()


@pytest.mark.parametrize("task", [tasks.Demanding(), tasks.Language()])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exact_numerics_are_one_value(exact_pool: ProcessPool, task: Task, precision: str) -> None:
    digests = set()
    for engine in ENGINES:
        job = make_job(task, engine, options={"precision": precision}, numerics="exact")
        digests |= {digest_of(state_of(exact_pool.run(train, job, (0, 5), members=range(size)))) for size in sizes}
    assert len(digests) == 1


@each_engine
def test_times_are_measured_on_the_device(pool: ProcessPool, engine: str) -> None:
    times = pool.run(measured, make_job(tasks.Language(), engine), members=range(sizes[-1]))
    assert all(compute > 0 and update > 0 and communicate >= 0 for compute, communicate, update in times)


def measured(kept: dict, rank: int, size: int, job: object) -> tuple[float, float, float]:
    """Seconds by part of the second of three steps."""
    from shoal.engines import make_engine
    from tests.support.engine_runs import run_step

    engine = make_engine(job, torch.device("cuda", kept["place"]))  # type: ignore[arg-type]
    engine.form(rank, size)
    try:
        for step in range(1, 4):
            run_step(engine, job, rank, size, step)  # type: ignore[arg-type]
            engine.update(0.01)
        return engine.times.compute_s, engine.times.communicate_s, engine.times.update_s
    finally:
        engine.leave()
