"""Chooses what a member trains on among the samples that a step has read: `data.selection`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shoal.data.selecting import choose
from shoal.engines.micro_batches import plan
from shoal.engines.protocol import Engine
from shoal.engines.randomness import seed_shard
from shoal.job import Job
from shoal.worker.batches import to_device
from shoal.worker.loader import Samples, Work


@dataclass(frozen=True, slots=True)
class Selected:
    """What a member trains on in one step."""

    samples: Samples
    """Of its virtual shards, `Lease.shard_size` of each."""
    weights: torch.Tensor | None
    """float32 [samples], on the engine's device; None: all weigh 1."""
    scores: tuple[torch.Tensor, ...] = ()
    """The loss of every sample that was read, in parts, in order; none: all of them are trained on."""


class Selector:
    """Scores the candidates of a member's virtual shards and chooses among those of each shard by itself.

    What comes out depends on the weights and the candidates alone: not on earlier steps, nor on who else there is. In
    `exact` numerics each shard's candidates are a forward pass of their own, always of the same shape.
    """

    def __init__(self, job: Job, bounds: Sequence[int], rank: int) -> None:
        """`bounds`, `rank`: as for `plan`."""
        self._job, self._bounds, self._rank = job, tuple(bounds), rank

    def select(self, engine: Engine, work: Work, tick: Callable[[], None]) -> Selected:
        """Choose (collective if the engine's passes are). `tick` is called before every pass. Raises TaskError."""
        spec, lease, places = self._job.data.selection, work.lease, work.lease.shard_size
        candidates = (lease.stop - lease.start) // (lease.shards[1] - lease.shards[0])
        if spec is None or candidates == places:
            return Selected(work.samples, None)
        scores = self._score(engine, work, candidates, tick)
        losses = torch.cat(scores).double().cpu().numpy()
        chosen = [
            choose(spec, losses[low : low + candidates], places, seed=self._job.seed, first=lease.start + low)
            for low in range(0, len(losses), candidates)
        ]
        rows = np.concatenate([shard * candidates + c.places for shard, c in enumerate(chosen)])
        weights = [c.weights for c in chosen if c.weights is not None]
        return Selected(
            {name: column[rows] for name, column in work.samples.items()},
            torch.from_numpy(np.concatenate(weights)).to(engine.device) if weights else None,
            tuple(scores),
        )

    def _score(self, engine: Engine, work: Work, candidates: int, tick: Callable[[], None]) -> list[torch.Tensor]:
        """The loss of every candidate of this member, in order, pass by pass."""
        batch, lease = self._job.batch, work.lease
        passes = plan(
            self._bounds,
            self._rank,
            merge=bool(engine.merges_shards),
            shard_size=candidates,
            micro_limit=batch.micro_limit,
            equal=engine.equal_micro_batches,
        )
        losses = []
        for one in passes:
            tick()
            low, high = ((shard - lease.shards[0]) * candidates for shard in one.shards)
            seed_shard(self._job.seed, lease.step, one.shards[0])  # a task may draw, though the model does not
            found = engine.score(to_device(work.samples, low, high, engine.device))
            if one.share:
                losses.append(found)
        return losses
