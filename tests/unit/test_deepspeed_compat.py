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
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import make_job
from tests.support.engine_runs import reader, run_step

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


def test_release_without_an_engine_is_harmless() -> None:
    compat.load(torch.device("cpu"))
    compat.release(None)
