"""Canary for the private names of DeepSpeed: touches every one of them, so that an upgrade fails here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from shoal import deepspeed_compat as compat
from shoal.engines import make_engine
from shoal.engines.exact_zero import VECTOR
from shoal.optim.schedules import learning_rate
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import EXACT, difference, make_job
from tests.support.engine_runs import TOTAL, plain, reader, run_step

pytestmark = pytest.mark.unit


@pytest.fixture
def lone_group(tmp_path: Path) -> Iterator[None]:
    """A default process group with one member."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_private_name_is_where_it_was(lone_group: None, stage: int, precision: str) -> None:
    linear = nn.functional.linear
    job = make_job(tasks.Partial(), f"zero{stage}", options={"precision": precision})
    engine = make_engine(job, torch.device("cpu"))
    before = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    for _ in range(2):
        engine.form(0, 1)
        shard = engine.read_state()
        parts = shard.tensors["param"].split([e.count for e in shard.extents])
        held = dict(zip((e.name for e in shard.extents), parts, strict=True))
        assert all(torch.equal(held[name], before[name].flatten()) for name in before)
        engine.write_state(reader([shard]), {"optimizer_step": 1}, {})
        assert engine.read_state().scalars == {"optimizer_step": 1}
        whole = engine.full_parameters()
        assert all(torch.equal(whole[name], before[name]) for name in before)
        run_step(engine, job, 0, 1, 1)
        assert engine.update(0.0) > 0
        engine.write_state(reader([shard]), {"optimizer_step": 0}, {})
        state = engine.read_state()
        engine.leave()
        assert nn.functional.linear is linear
        engine.reset()
        assert state.scalars == {"optimizer_step": 0}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", [False, True])
def test_gradients_are_left_alone_and_partitions_padded(
    lone_group: None, monkeypatch: pytest.MonkeyPatch, stage: int, offload: bool
) -> None:
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    torch.use_deterministic_algorithms(True)
    try:
        job = make_job(tasks.Partial(), f"zero{stage}", options={"offload": offload}, numerics="exact")
        engine = make_engine(job, torch.device("cpu"))
        engine.form(0, 1)
        inner = compat.torch_optimizer(engine._engine)
        padded = [p for group in inner.param_groups for p in group["params"]]
        assert all(p.numel() % VECTOR == 0 for p in padded)
        flats = compat.flat_partitions(engine._engine)
        assert [f.data_ptr() for f in flats] == [p.data_ptr() for p in padded]
        for step in (1, 2):
            run_step(engine, job, 0, 1, step)
            engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL))
        whole = engine.full_parameters()
        engine.leave()
    finally:
        torch.use_deterministic_algorithms(False)
    assert difference(whole, plain(job, 2, by_shard=True)[0]) < EXACT


def test_release_without_an_engine_is_harmless() -> None:
    compat.load(torch.device("cpu"))
    compat.release(None)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_view_that_will_be_given_its_state_is_formed_without_sending_anything(
    lone_group: None, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    engine = make_engine(make_job(tasks.Regression(), f"zero{stage}"), torch.device("cpu"))
    engine.form(0, 1)
    engine.leave()
    for name in ("new_group", "broadcast", "all_gather_into_tensor", "all_gather"):
        monkeypatch.setattr(dist, name, lambda *_, name=name, **__: pytest.fail(name))
    engine.form(0, 1)
    monkeypatch.undo()
    engine.write_state(lambda key, extents: torch.zeros(sum(e.count for e in extents)), {"optimizer_step": 1}, {})
    assert all(not whole.any() for whole in engine.full_parameters().values())
    engine.leave()
