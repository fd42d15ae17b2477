"""A newcomer's dry step: what only a first step costs is paid while the members go on without it."""

from __future__ import annotations

from typing import Any

from shoal.data.augment import apply
from shoal.engines.protocol import Engine
from shoal.engines.randomness import seed_shard
from shoal.job import Job
from shoal.membership.messages import Fresh, ViewOrder
from shoal.membership.view import MemberId, View
from shoal.worker.batches import to_device
from shoal.worker.group import dissolve_group, form_group
from shoal.worker.loader import Read


def dry_step(
    engine: Engine, job: Job, member: MemberId, store: Any, rendezvous: str, read: Read, span: tuple[int, int]
) -> None:
    """One virtual shard, the samples at positions `span`, up to the update, in a group of one; then the initial state
    again.

    Imports, kernels' first calls, DeepSpeed's first engine: seconds that would otherwise pass inside a view.
    Raises TaskError if the user's code fails.
    """
    order = ViewOrder(View(0, (member,)), member, rendezvous, Fresh())
    size = span[1] - span[0]
    found = read([span])[0]  # at once, before they are released
    samples = apply(job.data.augment, found, seed=job.seed, first=span[0], shard_size=size)
    form_group(order, engine.device, store, job.workers.start_s)
    try:
        engine.form(0, 1, (0, 1))
        seed_shard(job.seed, 0, 0)
        batch = to_device(samples, 0, size, engine.device)
        if job.data.selection is not None:
            engine.score(batch)
        engine.micro_step(batch, 1.0, last=True)
        engine.update(0.0)
    finally:
        engine.leave()
        dissolve_group()
        engine.reset()
