"""The loader hands over what the model sees, and digests of what was read."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np
import pytest

from shoal.data.augment import augmenter
from shoal.digests import shard_digests
from shoal.errors import DataError
from shoal.job import Batch, Budget, Data, Flip, Job, Mixup
from shoal.membership.view import Lease
from shoal.tasks import ImageClassifier
from shoal.worker.loader import Loader, Work

pytestmark = pytest.mark.unit

JOB = Job(
    task=ImageClassifier(),
    data=Data(train="x", augment=(Flip(), Mixup(alpha=1.0, classes=10))),
    batch=Batch(size=16, virtual_shards=4),
    budget=Budget(steps=3),
)


def stored(start: int, stop: int) -> dict[str, np.ndarray]:
    """What the feed has at positions [start, stop)."""
    pixels = np.arange(start, stop, dtype="f4")[:, None, None, None] + np.linspace(0, 1, 64, dtype="f4").reshape(
        1, 8, 8
    )
    return {"image": pixels, "label": np.arange(start, stop) % 10}


def work(*leases: Lease, job: Job = JOB, read: Any = stored) -> list[Work]:
    waiting: queue.Queue[Any] = queue.Queue()
    for item in (*leases, None):
        waiting.put(item)
    loader = Loader(waiting, lambda ranges: [read(a, b) for a, b in ranges], augmenter(job))
    loader.start()
    out = []
    while (item := loader.next()) is not None:
        out.append(item)
    return out


def lease(step: int, low: int, high: int) -> Lease:
    first = (step - 1) * 16
    return Lease(view=1, step=step, shards=(low, high), start=first + low * 4, stop=first + high * 4)


def test_members_of_any_division_see_the_same_samples_and_record_those_of_the_data() -> None:
    whole = work(lease(1, 0, 4), lease(2, 0, 4))
    parts = work(lease(1, 0, 1), lease(1, 1, 4), lease(2, 0, 3), lease(2, 3, 4))
    for step, (a, b) in enumerate(((0, 2), (2, 4))):
        raw = stored(step * 16, step * 16 + 16)
        for name, column in whole[step].samples.items():
            assert column.tobytes() == b"".join(part.samples[name].tobytes() for part in parts[a:b])
        assert whole[step].samples["label"].shape == (16, 10)
        assert not np.array_equal(whole[step].samples["image"], raw["image"])
        assert whole[step].digests == shard_digests(raw, 4) == "".join(part.digests for part in parts[a:b])


def test_samples_that_cannot_be_augmented_end_the_loop_with_the_reason() -> None:
    with pytest.raises(DataError, match="holds the label 12, and Mixup has classes=10"):
        work(lease(1, 0, 4), read=lambda a, b: {**stored(a, b), "label": np.full(b - a, 12)})
