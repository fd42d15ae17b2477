"""What the engines of `exact` numerics share: how they run a step. See `shoal.engines.exact` and docs/numerics.md."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch

from shoal.engines.base import EngineBase, samples_in
from shoal.engines.exact import ExactStep, Losses, ShardBuffers, realigned
from shoal.optim.noise import Parts
from shoal.tasks.base import Batch


class ExactEngine(EngineBase):
    """An engine whose bits do not depend on who computes. Comes before the other base class of an engine."""

    _buffer_kind = ShardBuffers
    # Whether casts of weights are kept decides where the gradients of a weight that is used twice are added: after the
    # cast back, or before it. ZeRO-3 cannot keep them, so nobody does.
    _keep_casts = False
    _hooks_norms = False

    _buffers: ShardBuffers
    _step: ExactStep
    _losses: Losses = ()
    _heard: tuple[int, ...] = ()
    _shard_size = 1

    @property
    def merges_shards(self) -> bool:
        """False: the size of a batch decides how its products are rounded."""
        return False

    def step_losses(self) -> Losses:
        """(1, loss) of every virtual shard of the view in the last step, in order."""
        return self._losses

    def step_notes(self) -> tuple[int, ...]:
        """What all members noted in the last step, in the order of the virtual shards."""
        return self._heard

    def micro_step(
        self, batch: Batch, share: float, *, last: bool, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Forward and backward of one virtual shard; returns the detached loss. Raises TaskError."""
        begun = self._clock.mark()
        loss = self._run_shard(self._module, realigned(batch), share, weights)
        self._run_backward((loss * share).backward)
        self._end_backward()
        detached = loss.detach()
        if share:
            self._step.add_shard(detached, share)
            self._shard_size = samples_in(batch)
        else:
            self.model.zero_grad(set_to_none=True)
        self._clock.end_pass(begun)
        return detached

    def score(self, batch: Batch) -> torch.Tensor:
        """The loss of each sample of one virtual shard. Raises TaskError."""
        return super().score(realigned(batch))

    def update(self, lr: float) -> float:
        """Reduce, clip, apply (collective). Returns the global gradient norm; if not finite nothing is applied."""
        begun = self._clock.mark()
        self._compare_notes()
        reduced, self._noted = self._step.reduce(self._buffers.rows(), self._noted), ()
        self._clock.end_reduction(begun)
        begun = self._clock.mark()
        applied = math.isfinite(reduced.norm)
        if applied:
            self._buffers.take(reduced.buffers)
            self._apply(reduced.gradient, reduced.clip(self._job.optimizer.clip_norm), lr)
        self._step.release(reduced.gradient)
        self._losses, self._heard = reduced.losses, reduced.notes
        shards = len(reduced.squares)
        self._parts = Parts(shards, shards / self._shard_size, sum(reduced.squares))
        self._finish(applied=applied)
        self._clock.end_update(begun)
        return reduced.norm

    @abstractmethod
    def _apply(self, gradient: torch.Tensor, scale: float, lr: float) -> None:
        """Update the state by `scale` x `gradient`, whose contents may be lost."""

    def _end_backward(self) -> None:
        """After each backward pass."""

    def _abandon_step(self) -> None:
        super()._abandon_step()
        self._step.abandon()

    def _depart(self) -> None:
        self._step.leave()
        super()._depart()
