"""`exact` numerics: one SHA-256 of parameters, optimizer state and buffers, whoever computes and however it goes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from shoal.engines import make_engine
from shoal.engines.flat import BLOCK
from shoal.engines.reduction import PIECE
from shoal.job import Batch, Job, Optimizer, Workers
from shoal.job.optimizers import NAMES, RULES
from shoal.optim.schedules import learning_rate
from shoal.state.layout import Shard
from shoal.tasks import LanguageModel
from shoal.tasks.base import Task
from tests.cluster.engines.test_views import count_things
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import ENGINES, LOOSE, difference, digest_of, make_job, state_of
from tests.support.engine_runs import TOTAL, Outcome, note_of, plain, reader, rows, run_step, train
from tests.support.engine_selection import selecting, train_selecting
from tests.support.process_pool import ProcessPool, RemoteFailure

pytestmark = pytest.mark.cluster

SIZES = (1, 2, 3, 5, 8)
NEAR = 1e-3
"""What a few steps of Adam can make of rounding errors."""
SGD = Optimizer(name="sgd", lr=0.05, clip_norm=0.1)


@pytest.fixture(scope="module")
def eight() -> Iterator[ProcessPool]:
    """Eight processes that compute in one way only."""
    pool = ProcessPool(8, numerics="exact")
    yield pool
    pool.close()


def exact_job(task: Task, engine: str, **changes: Any) -> Job:
    return replace(make_job(task, engine, **changes), numerics="exact", workers=Workers(max=8))


def one_digest(pool: ProcessPool, jobs: Sequence[Job], sizes: Sequence[int], steps: int = 5) -> list[Outcome]:
    """Every job on every number of members ends in the same state, norms and losses; returns the last outcome."""
    seen = set()
    for job in jobs:
        for size in sizes:
            outcomes = pool.run(train, job, (0, steps), members=range(size))
            assert all(o.losses == outcomes[0].losses and o.norms == outcomes[0].norms for o in outcomes)
            shards = [(len(step), {n for n, _ in step}) for step in outcomes[0].losses]
            assert shards == [(job.batch.virtual_shards, {1})] * steps
            notes = [tuple(note_of(s + 1, i) for i in range(job.batch.virtual_shards)) for s in range(steps)]
            assert all(o.notes == notes for o in outcomes), "64 bits of each shard reach everybody"
            assert all(o.parts == outcomes[0].parts for o in outcomes)
            assert {p.count for p in outcomes[0].parts} == {job.batch.virtual_shards}
            said = (tuple(outcomes[0].norms), tuple(outcomes[0].losses), tuple(outcomes[0].parts))
            seen.add((digest_of(state_of(outcomes)), *said))
    assert len(seen) == 1
    return outcomes


@pytest.mark.parametrize(
    ("optimizer", "sizes"),
    [(Optimizer(lr=1e-2, clip_norm=0.5, ema=0.9), SIZES), (SGD, (1, 3, 8))],
    ids=["adamw", "sgd"],
)
def test_one_digest_for_every_engine_and_size(eight: ProcessPool, optimizer: Optimizer, sizes: Sequence[int]) -> None:
    jobs = [exact_job(tasks.Demanding(), engine, optimizer=optimizer) for engine in ENGINES]
    outcomes = one_digest(eight, jobs, sizes)
    assert min(outcomes[0].norms) > (optimizer.clip_norm or 0), "clipping is active"
    right, norms = plain(jobs[0], 5, by_shard=True)
    assert difference({**outcomes[0].parameters, **state_of(outcomes)[0].buffers}, right) < NEAR
    assert outcomes[0].norms == pytest.approx(norms, rel=NEAR)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("sgd", "adamw")])
def test_one_digest_with_every_optimizer(eight: ProcessPool, name: Any) -> None:
    optimizer = Optimizer(name=name, lr=1e-2)
    engines = ("replicated",) if RULES[name].needs else ("replicated", "zero1", "zero3")
    jobs = [exact_job(tasks.Demanding(width=67), engine, optimizer=optimizer) for engine in engines]
    outcomes = one_digest(eight, jobs, (1, 3), steps=3)
    found = {**outcomes[0].parameters, **state_of(outcomes)[0].buffers}
    # Muon computes its updates in bfloat16.
    assert difference(found, plain(jobs[0], 3, by_shard=True)[0]) < (LOOSE if name == "muon" else NEAR)


def test_one_digest_where_samples_are_chosen(eight: ProcessPool) -> None:
    seen = set()
    for engine in ENGINES:
        for size in (1, 3, 8):
            job = selecting(exact_job(tasks.Telling(), engine))
            outcomes = eight.run(train_selecting, job, 7, members=range(size))
            assert all(o.losses == outcomes[0].losses for o in outcomes)
            seen.add((digest_of(state_of(outcomes)), tuple(outcomes[0].norms), tuple(outcomes[0].losses)))
    assert len(seen) == 1


def test_fast_numerics_would_fail_this_test(eight: ProcessPool) -> None:
    job = replace(exact_job(tasks.Demanding(), "replicated"), numerics="fast")
    digests = {digest_of(state_of(eight.run(train, job, (0, 5), members=range(n)))) for n in SIZES}
    assert len(digests) > 1


@pytest.mark.parametrize("engine", ENGINES)
def test_ranges_may_be_uneven_and_the_shards_any_number(eight: ProcessPool, engine: str) -> None:
    for shards, divisions in ((8, [(0, 8), (0, 1, 8), (0, 5, 6, 8)]), (6, [(0, 6), (0, 2, 4, 6), (0, 1, 2, 5, 6)])):
        job = exact_job(tasks.Demanding(width=67), engine)
        job = replace(job, batch=Batch(size=24, virtual_shards=shards), workers=Workers(max=4))
        outcomes = [eight.run(train, job, (0, 4), members=range(len(b) - 1), bounds=b) for b in divisions]
        assert len({digest_of(state_of(o)) for o in outcomes}) == 1
        assert len({tuple(o[0].losses) for o in outcomes}) == 1


def test_vectors_of_many_pieces(eight: ProcessPool) -> None:
    task = tasks.Regression(width=1100)
    assert 1100 * 1100 > 2 * PIECE > 2 * BLOCK
    one_digest(eight, [exact_job(task, engine) for engine in ("replicated", "zero1", "zero3")], (1, 2, 3), steps=2)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (tasks.Language(), {"precision": "bf16"}),
        (tasks.Language(), {"checkpoint_activations": True}),
        (tasks.HuggingFace(), {}),
        (tasks.Convolving(), {}),
        (LanguageModel(context=16, layers=2, heads=2, width=24, dropout=0.1), {}),
    ],
    ids=["bf16", "checkpointed", "hugging face", "convolving", "own transformer"],
)
def test_other_models(eight: ProcessPool, task: Task, options: dict[str, Any]) -> None:
    jobs = [exact_job(task, engine, options=options) for engine in ENGINES]
    one_digest(eight, jobs, (1, 3, 8), steps=3)


def test_modules_that_work_in_place_still_do(eight: ProcessPool) -> None:
    job = exact_job(tasks.Convolving(silent=True), "replicated")
    outcomes = eight.run(train, job, (0, 5), members=range(2))
    found = {**outcomes[0].parameters, **state_of(outcomes)[0].buffers}
    assert difference(found, plain(job, 5, by_shard=True)[0]) < NEAR


def test_optimizer_state_in_host_memory(eight: ProcessPool) -> None:
    jobs = [exact_job(tasks.Demanding(), engine, options={"offload": True}) for engine in ENGINES[1:]]
    one_digest(eight, [*jobs, exact_job(tasks.Demanding(), "replicated")], (1, 3))


def test_size_and_engine_may_change_at_any_step(eight: ProcessPool) -> None:
    """As after a stop and a resume: only the state goes from one stretch to the next, through other processes."""
    task = tasks.Demanding()
    undisturbed = eight.run(train, exact_job(task, "replicated"), (0, 8), members=[0])
    state: list[Shard] | None = None
    losses, step = [], 0
    legs = [
        ("zero3", [0, 1, 2]),
        ("replicated", [3, 4]),
        ("zero1", [4, 5, 6, 7, 0]),
        ("zero2", [1]),
        ("zero3", range(8)),
    ]
    for (engine, members), stop in zip(legs, (2, 3, 5, 6, 8), strict=True):
        outcomes = eight.run(train, exact_job(task, engine), (step, stop), members=members, state=state)
        state, step = state_of(outcomes), stop
        losses += outcomes[0].losses
    assert state is not None
    assert digest_of(state) == digest_of(state_of(undisturbed))
    assert losses == undisturbed[0].losses


def test_survivors_go_on_with_what_they_have_and_newcomers_take_over(eight: ProcessPool) -> None:
    job = exact_job(tasks.Demanding(), "replicated")
    undisturbed = eight.run(train, job, (0, 8), members=[7])
    eight.run(go_on, job, (0, 2), members=[0, 1, 2])
    eight.run(go_on, job, (2, 4), members=[1, 2])
    given = [shard for shard, _ in eight.run(offer, members=[1, 2])]
    eight.run(go_on, job, (4, 6), given, members=[3, 1, 2])
    held = eight.run(go_on, job, (6, 8), members=[2, 3])
    assert digest_of(held) == digest_of(state_of(undisturbed))


def go_on(
    kept: dict[str, Any], rank: int, size: int, job: Job, steps: tuple[int, int], given: Sequence[Shard] | None = None
) -> Shard:
    """Further steps with the state that is here, or, on rank 0, with the given one."""
    if kept.get("job") != job:
        kept.update(job=job, engine=make_engine(job, torch.device("cpu")))
    engine = kept["engine"]
    if steps[0] == 0:
        engine.reset()
    engine.form(rank, size)
    try:
        if given is not None and rank == 0:
            engine.write_state(reader(given), given[0].scalars, given[0].buffers, shared=False)
        for step in range(steps[0] + 1, steps[1] + 1):
            run_step(engine, job, rank, size, step)
            engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL))
        assert engine.applied == steps[1]
        return engine.read_state()
    finally:
        engine.leave()


def offer(kept: dict[str, Any], rank: int, size: int) -> tuple[Shard, int]:
    """An even part of the state that is here, between views."""
    return kept["engine"].offered(rank, size), kept["engine"].applied


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_is_not_finite_leaves_the_state_untouched(eight: ProcessPool, engine: str) -> None:
    for before, after, norm, losses, good in eight.run(
        fail_one_step, exact_job(tasks.Demanding(width=21), engine), members=range(2)
    ):
        assert not math.isfinite(norm)
        assert [math.isfinite(loss) for _, loss in losses] == [True] * 4 + [False] * 4
        assert (after.extents, after.scalars) == (before.extents, before.scalars)
        for was, now in ((before.tensors, after.tensors), (before.buffers, after.buffers)):
            assert all(torch.equal(was[name], now[name]) for name in was)
        assert math.isfinite(good)


def fail_one_step(kept: dict[str, Any], rank: int, size: int, job: Job) -> tuple[Any, ...]:
    """A step whose loss is NaN on one member only; then a good one."""
    engine = make_engine(job, torch.device("cpu"))
    engine.form(rank, size)
    try:
        before = engine.read_state()
        for shard in range(4):
            batch = rows(shard * 3, shard * 3 + 3)
            batch["y"] = batch["y"] * (float("nan") if rank else 1.0)
            engine.micro_step(batch, 1 / 8, last=shard == 3)
        norm, losses = engine.update(0.01), engine.step_losses()
        after = engine.read_state()
        run_step(engine, job, rank, size, 1)
        return before, after, norm, losses, engine.update(0.01)
    finally:
        engine.leave()


@pytest.mark.parametrize("engine", ["replicated", "zero1", "zero3"])
def test_many_views_leave_nothing_behind(eight: ProcessPool, engine: str) -> None:
    job = exact_job(tasks.Demanding(), engine)
    state = state_of(eight.run(train, job, (0, 2), members=[0]))

    def views(count: int) -> dict[str, int]:
        for i in range(count):
            eight.run(train, job, (2, 3), members=range(1 + i % 3), state=state)
        return eight.run(count_things, members=[0])[0]

    before, after = views(3), views(9)
    grown = after.pop("megabytes") - before.pop("megabytes")
    assert after == before
    assert grown < 16


def test_merged_shards_are_refused(eight: ProcessPool) -> None:
    with pytest.raises(RemoteFailure, match=r"one by one, each with a share of 1/8; got 0\.25"):
        eight.run(merge_two, exact_job(tasks.Regression(), "replicated"), members=[0])


def merge_two(kept: dict[str, Any], rank: int, size: int, job: Job) -> None:
    engine = make_engine(job, torch.device("cpu"))
    engine.form(rank, size)
    try:
        engine.micro_step(rows(0, 6), 0.25, last=False)
    finally:
        engine.leave()


def test_products_do_not_depend_on_where_their_factors_lie(eight: ProcessPool) -> None:
    """What prepare_process() is for. Parameters lie elsewhere in every engine, samples elsewhere in every range."""
    assert eight.run(multiply_everywhere, members=[0]) == [set()]


def multiply_everywhere(kept: dict[str, Any], rank: int, size: int) -> set[tuple[int, int, int]]:
    """Shapes whose products differ with the alignment of a factor."""
    found = set()
    for m, k, n in ((1, 12, 21), (3, 21, 21), (7, 33, 65), (48, 10, 10), (129, 100, 10), (64, 192, 320)):
        x, w = torch.randn(m, k), torch.randn(n, k)
        right = torch.nn.functional.linear(x, w)
        for offset in range(1, 17):
            moved = [torch.empty(t.numel() + 16)[offset : offset + t.numel()].view(t.shape).copy_(t) for t in (x, w)]
            if not torch.equal(torch.nn.functional.linear(*moved), right):
                found.add((m, k, n))
    return found
