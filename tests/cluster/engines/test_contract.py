"""The contract of all engines: however many compute and however the state is spread, the numbers are plain torch's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from shoal.engines import make_engine
from shoal.engines.factory import build_model
from shoal.job import Optimizer
from shoal.job.optimizers import NAMES, RULES
from shoal.optim.noise import NO_PARTS
from shoal.optim.optimizers import state_names
from shoal.state.layout import divide
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import ENGINES, EXACT, LOOSE, difference, make_job, state_of
from tests.support.engine_runs import plain, reader, rows, run_step, train
from tests.support.engine_selection import plain_selecting, selecting, train_selecting
from tests.support.process_pool import ProcessPool

pytestmark = pytest.mark.cluster

each_engine = pytest.mark.parametrize("engine", ENGINES)


@each_engine
def test_fifty_steps_agree_with_plain_torch_on_1_2_and_4_members(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Regression(), engine)
    right, norms = plain(job, 50)
    for size in (1, 2, 4):
        first, *others = pool.run(train, job, (0, 50), members=range(size))
        assert difference(first.parameters, right) < EXACT
        assert first.norms == pytest.approx(norms, rel=EXACT)
        assert first.merged is True
        assert all(o.norms == first.norms and o.parameters == {} for o in others)


@each_engine
def test_a_tied_transformer_agrees_on_three_unequal_members(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Language(), engine)
    right, norms = plain(job, 15)
    outcomes = pool.run(train, job, (0, 15), members=range(3))
    assert difference(outcomes[0].parameters, right) < EXACT
    assert outcomes[0].norms == pytest.approx(norms, rel=EXACT)


@each_engine
def test_sgd_with_momentum_and_no_clipping(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Regression(), engine, optimizer=Optimizer(name="sgd", lr=0.05, clip_norm=None))
    outcomes = pool.run(train, job, (0, 20), members=range(2))
    assert difference(outcomes[0].parameters, plain(job, 20)[0]) < EXACT
    assert set(state_of(outcomes)[0].tensors) == {"param", "momentum_buffer"}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("sgd", "adamw")])
def test_every_optimizer_and_its_state_on_all_engines_and_sizes(pool: ProcessPool, name: Any) -> None:
    optimizer = Optimizer(name=name, lr=1e-2, clip_norm=0.5, ema=0.8)
    alone = [("replicated", 2), ("replicated", 1), ("replicated", 3)]
    everywhere = [("zero3", 2), ("replicated", 3), ("zero1", 2), ("zero2", 1)]
    state, done = None, 0
    for engine, size in alone if RULES[name].needs else everywhere:
        job = make_job(tasks.Regression(), engine, optimizer=optimizer)
        outcomes = pool.run(train, job, (done, done + 3), members=range(size), state=state)
        state, done = state_of(outcomes), done + 3
        assert set(state[0].tensors) == {"param", *state_names(optimizer)}
    assert difference(outcomes[0].parameters, plain(job, done)[0]) < EXACT
    assert difference(outcomes[0].averaged, outcomes[0].parameters) > EXACT


@each_engine
def test_the_moving_average_moves_with_the_state(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Regression(), engine, optimizer=Optimizer(lr=1e-2, ema=0.8))
    right = plain(job, 1)[0]
    for steps in range(2, 13):
        new = plain(job, steps)[0]
        right = {name: 0.8 * old + 0.2 * new[name] for name, old in right.items()}
    state = state_of(pool.run(train, job, (0, 7), members=range(2)))
    first, *_ = pool.run(train, job, (7, 12), members=range(3), state=state)
    assert difference(first.averaged, right) < EXACT
    assert difference(first.parameters, plain(job, 12)[0]) < EXACT, "and the weights are back afterwards"


@each_engine
def test_bf16_keeps_fp32_state_and_stays_near(pool: ProcessPool, engine: str) -> None:
    sgd = Optimizer(name="sgd", lr=0.1)  # Adam would turn the rounding of a tiny gradient into a whole step
    job = make_job(tasks.Language(), engine, options={"precision": "bf16"}, size=32, optimizer=sgd)
    in_fp32 = make_job(tasks.Language(), engine, size=32, optimizer=sgd)
    right = plain(job, 10)[0]
    for size in (1, 2):
        outcomes = pool.run(train, job, (0, 10), members=range(size))
        assert all(p.dtype == torch.float32 for p in outcomes[0].parameters.values())
        assert difference(outcomes[0].parameters, right) < LOOSE
        assert 1e-6 < difference(outcomes[0].parameters, plain(in_fp32, 10)[0]) < 4 * LOOSE


@each_engine
def test_random_numbers_belong_to_the_virtual_shard(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Dropping(), engine)
    right = plain(job, 10, by_shard=True)[0]
    for size in (1, 3):
        outcomes = pool.run(train, job, (0, 10), members=range(size))
        assert difference(outcomes[0].parameters, right) < EXACT
        assert outcomes[0].merged is False


@each_engine
def test_batch_norm_does_not_depend_on_the_number_of_members(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Normalizing(), engine)
    right = plain(job, 10, by_shard=True)[0]
    for size in (1, 3):
        outcomes = pool.run(train, job, (0, 10), members=range(size))
        for outcome in outcomes:
            assert outcome.merged is False
            assert outcome.shard is not None
            assert int(outcome.shard.buffers["1.num_batches_tracked"]) == 10
            assert difference({**outcomes[0].parameters, **outcome.shard.buffers}, right) < EXACT


@each_engine
def test_unused_and_frozen_parameters(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Partial(), engine)
    right = plain(job, 10)[0]
    for size in (1, 2):
        outcomes = pool.run(train, job, (0, 10), members=range(size))
        assert difference(outcomes[0].parameters, right) < EXACT
        held = {e.name for shard in state_of(outcomes) for e in shard.extents}
        assert held == set(right), "frozen parameters belong to the state"


@each_engine
def test_the_noise_of_the_gradient_is_measured_in_the_passes_that_there_are(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Regression(), engine, optimizer=Optimizer(name="sgd", lr=0.05, clip_norm=0.1))
    model = build_model(job)
    squares = 0.0
    for shard in range(8):
        model.zero_grad()
        job.task.loss(model, rows(shard * 3, shard * 3 + 3)).backward()
        squares += sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    for size, later in (
        (1, 1),
        (2, 2),
        (3, 3),
    ):  # the first step's shards run one by one, on three members with padding
        outcomes = pool.run(train, job, (0, 2), members=range(size))
        first, second = (sum((o.parts[i] for o in outcomes), NO_PARTS) for i in (0, 1))
        assert (first.count, first.inverse) == (8, pytest.approx(8 / 3))
        assert first.squares == pytest.approx(squares, rel=1e-4)
        assert second.count == later


def test_a_parameter_that_only_some_samples_use(pool: ProcessPool) -> None:
    job = make_job(tasks.Partial(some=True), "replicated")
    right = plain(job, 10, by_shard=True)[0]
    for size in (1, 2, 4):
        outcomes = pool.run(train, job, (0, 10), members=range(size))
        assert difference(outcomes[0].parameters, right) < EXACT


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_optimizer_state_in_host_memory(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Partial(), engine, options={"offload": True})
    outcomes = pool.run(train, job, (0, 10), members=range(2))
    assert difference(outcomes[0].parameters, plain(job, 10)[0]) < EXACT


@pytest.mark.parametrize("engine", ["replicated", "zero2", "zero3"])
def test_recomputed_activations_change_nothing(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Language(), engine, options={"checkpoint_activations": True})
    outcomes = pool.run(train, job, (0, 8), members=range(2))
    assert difference(outcomes[0].parameters, plain(job, 8)[0]) < EXACT


@pytest.mark.parametrize("engine", ["replicated", "zero3"])
def test_a_hugging_face_model_with_recomputed_activations(pool: ProcessPool, engine: str) -> None:
    sgd = Optimizer(name="sgd", lr=0.1)  # gradients of such small weights are tiny: see bf16
    job = make_job(tasks.HuggingFace(), engine, options={"checkpoint_activations": True}, optimizer=sgd)
    outcomes = pool.run(train, job, (0, 4), members=range(2))
    right = plain(job, 4)[0]
    assert difference(outcomes[0].parameters, {name: right[name] for name in outcomes[0].parameters}) < EXACT


@pytest.mark.parametrize("steps", [0, 10])
def test_state_moves_between_engines_and_sizes_to_the_bit(pool: ProcessPool, steps: int) -> None:
    task = tasks.Partial()
    outcomes = pool.run(train, make_job(task, "zero3"), (0, steps), members=range(4))
    first = state_of(outcomes)
    chain = [("replicated", 1), ("zero1", 2), ("zero3", 3), ("zero2", 1), ("replicated", 3), ("zero3", 4)]
    state = first
    for engine, size in chain:
        state = state_of(pool.run(train, make_job(task, engine), (steps, steps), members=range(size), state=state))
        assert all(shard.scalars == {"optimizer_step": steps} for shard in state)
        assert_same_state(state, first)


def test_training_continues_undisturbed_through_engines_and_sizes(pool: ProcessPool) -> None:
    task = tasks.Normalizing()
    right = plain(make_job(task, "replicated"), 30, by_shard=True)[0]
    state = state_of(pool.run(train, make_job(task, "zero3"), (0, 10), members=range(4)))
    state = state_of(pool.run(train, make_job(task, "replicated"), (10, 20), members=range(1), state=state))
    outcomes = pool.run(train, make_job(task, "zero1"), (20, 30), members=range(2), state=state)
    assert difference({**outcomes[0].parameters, **state_of(outcomes)[0].buffers}, right) < EXACT


@each_engine
def test_a_loss_that_is_not_finite_leaves_the_state_untouched(pool: ProcessPool, engine: str) -> None:
    good, bad = make_job(tasks.Normalizing(), engine), make_job(tasks.Failing(), engine)
    for job in (good, bad):
        outcomes = pool.run(fail_one_step, job, members=range(2))
        for before, after, norm in outcomes:
            assert not math.isfinite(norm)
            assert (after.extents, after.scalars) == (before.extents, before.scalars)
            for was, now in ((before.tensors, after.tensors), (before.buffers, after.buffers)):
                assert all(torch.equal(was[name], now[name]) for name in was)


def fail_one_step(kept: dict[str, Any], rank: int, size: int, job: Any) -> tuple[Any, Any, float]:
    """A step whose loss is NaN on one member only; then a good one must be possible."""
    engine = make_engine(job, torch.device("cpu"))
    engine.form(rank, size)
    try:
        before = engine.read_state()
        batch = rows(0, 12)
        if rank == 1:
            batch["x"] = batch["x"] * float("nan")
        engine.micro_step(batch, 1 / size, last=True)
        norm = engine.update(0.01)
        after = engine.read_state()
        if not isinstance(job.task, tasks.Failing):
            run_step(engine, job, rank, size, 1)
            assert math.isfinite(engine.update(0.01))
        return before, after, norm
    finally:
        engine.leave()


@each_engine
def test_evaluation_is_that_of_the_model_and_leaves_it_training(pool: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Regression(), engine)
    outcomes = pool.run(train, job, (0, 5), members=range(2))
    model = job.task.build()
    model.load_state_dict(outcomes[0].parameters)
    with torch.no_grad():
        right = {name: float(value) for name, value in job.task.evaluate(model, rows(0, 32)).items()}
    assert all(o.metrics == pytest.approx(right, rel=1e-5) for o in outcomes)


@each_engine
@pytest.mark.parametrize("rule", ["importance", "hardest"])
def test_chosen_and_weighted_samples_agree_with_plain_torch(pool: ProcessPool, engine: str, rule: str) -> None:
    job = selecting(make_job(tasks.Telling(), engine), rule=rule)
    right, norms, scores = plain_selecting(job, 8)
    for size in (1, 3):
        outcomes = pool.run(train_selecting, job, 8, members=range(size))
        assert outcomes[0].shard is not None
        assert difference({**outcomes[0].parameters, **outcomes[0].shard.buffers}, right) < EXACT
        assert outcomes[0].norms == pytest.approx(norms, rel=EXACT)
        assert sum(o.metrics["scores"] for o in outcomes) == pytest.approx(scores, rel=EXACT)


@each_engine
def test_shards_that_share_a_pass_are_scored_together(pool: ProcessPool, engine: str) -> None:
    job = selecting(make_job(tasks.Smooth(), engine))
    job = replace(job, batch=replace(job.batch, micro_limit=12))
    right = plain_selecting(job, 8)[0]
    for bounds in ((0, 8), (0, 1, 8)):
        outcomes = pool.run(train_selecting, job, 8, members=range(len(bounds) - 1), bounds=bounds)
        assert outcomes[0].merged is True
        assert difference(outcomes[0].parameters, right) < EXACT


def assert_same_state(found: Any, right: Any) -> None:
    """Equal to the bit, however it is cut."""
    sizes: dict[str, int] = {}
    for shard in right:
        for extent in shard.extents:
            sizes[extent.name] = max(sizes.get(extent.name, 0), extent.stop)
    whole = divide(list(sizes.items()), 0, 1)
    for key in right[0].tensors:
        assert torch.equal(reader(found)(key, whole), reader(right)(key, whole)), key
