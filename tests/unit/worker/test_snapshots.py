"""What a worker keeps for itself and for others, and for how long."""

from __future__ import annotations

import threading

import pytest
import torch

from shoal.errors import CheckpointError
from shoal.membership.messages import Held
from shoal.state.layout import Extent, Shard
from shoal.worker.snapshots import Parcel, Sender, Snapshots, pack, unpack

pytestmark = pytest.mark.unit


def shard(value: float, size: int = 4) -> Shard:
    full = torch.full((size,), value)
    return Shard((Extent("w", 0, size),), {"param": full}, {"optimizer_step": 1}, {"mean": full.double()})


def test_a_parcel_is_the_shard_in_memory_of_its_own() -> None:
    original = shard(1.5)
    copy = unpack(pack(original))
    original.tensors["param"].zero_()
    assert copy.extents == original.extents
    assert copy.tensors["param"].tolist() == [1.5] * 4
    assert copy.buffers["mean"].dtype == torch.float64
    assert copy.scalars == {"optimizer_step": 1}


def test_only_the_newest_committed_and_what_is_beyond_stays() -> None:
    kept = Snapshots("w0")
    for owner in ("w0", "w1"):
        for step in (1, 2, 3, 4):
            kept.keep(Held(owner, 2, step), shard(step))
    kept.keep(Held("w9", 1, 0), shard(0.0))
    kept.tidy(committed=0, view=2, first_step=1)
    assert Held("w9", 1, 0) in kept.held, "what an earlier view made is needed until this one has committed"
    kept.tidy(committed=3, view=2, first_step=1)
    assert kept.held == tuple(Held(o, 2, s) for o in ("w0", "w1") for s in (3, 4))
    with pytest.raises(CheckpointError, match="w9"):
        kept.get(Held("w9", 1, 0))


def test_what_is_sent_arrives_in_order_and_is_told() -> None:
    arrived: list[tuple[str | None, int]] = []

    def send(keeper: str | None, step: int, parcel: Parcel) -> float:
        arrived.append((keeper, step))
        return 100.0 * step

    sender = Sender(send)
    sender.submit(1, shard(1))
    sender.submit(2, shard(2), "w5")
    assert sender.drain(20.0)
    assert arrived == [(None, 1), ("w5", 2)]
    told = sender.poll()
    assert [(k.step, k.bytes) for k in told] == [(1, 16), (2, 16)]
    assert [k.seconds // 100 for k in told] == [1, 2], "what it cost the keeper counts"
    assert sender.poll() == []
    sender.close()


def test_a_buddy_that_is_gone_holds_nobody_up() -> None:
    failed = threading.Event()

    def send(keeper: str | None, step: int, parcel: Parcel) -> float:
        failed.set()
        raise ConnectionError("gone")

    sender = Sender(send)
    for step in range(10):
        sender.submit(step, shard(step))
    assert failed.wait(20.0)
    assert sender.drain(20.0)
    assert sender.poll() == []
    sender.close()
