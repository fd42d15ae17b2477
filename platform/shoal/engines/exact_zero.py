"""DeepSpeed ZeRO in `exact` numerics: DeepSpeed divides the state and gathers weights, the gradients are added here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shoal import deepspeed_compat as compat
from shoal.engines.exact import ExactStep
from shoal.engines.exact_base import ExactEngine
from shoal.engines.flat import lay_out
from shoal.engines.micro_batches import even_bounds
from shoal.engines.passages import group_by_module
from shoal.engines.zero import ZeroEngine
from shoal.job import Job
from shoal.optim.optimizers import make_optimizer

VECTOR = 16
"""Elements: no vector unit takes more fp32 numbers at once, and torch's fused optimizers divide work among threads in
units of as many."""


class ExactZeroEngine(ExactEngine, ZeroEngine):
    """Forward and backward passes run as DeepSpeed arranges them, but the gradients stay whole until they are added.

    Each member then receives the elements that its optimizer updates. Its flat partitions are padded, so that the end
    of a partition, which depends on the number of members, is not the end of what a kernel updates.
    """

    def __init__(self, job: Job, model: nn.Module, device: torch.device) -> None:
        super().__init__(job, model, device)
        groups = make_optimizer(job.optimizer, self._parameters.items(), device).param_groups
        layout = lay_out([[(self._names[p], p.shape) for p in group["params"]] for group in groups])
        self._step = ExactStep(layout, self._parameters, device)
        self._gradients: list[torch.Tensor] = []
        if self._stage < 3:
            group_by_module(self._module)

    @property
    def equal_micro_batches(self) -> bool:
        """True at stage 3: every pass gathers weights."""
        return self._stage == 3

    def form(self, rank: int, size: int, bounds: Sequence[int] | None = None) -> None:
        """Enter a view (collective). A view of fresh members takes rank 0's weights."""
        super().form(rank, size, bounds)
        compat.take_off_reduction(self._engine)
        self._flats = compat.pad_partitions(self._engine, VECTOR)
        self._gradients = [torch.zeros_like(flat) for flat in self._flats]
        slots = self._step.layout.slots
        begins = [slots[piece.name].start + piece.start for piece in self._pieces]
        self._wants = [(begin, begin + piece.count) for begin, piece in zip(begins, self._pieces, strict=True)]
        self._step.enter(rank, bounds or even_bounds(self._job.batch.virtual_shards, size), self._wants)

    def leave(self) -> None:
        """Let go of the view and of the state."""
        self._gradients = []
        super().leave()

    def _end_backward(self) -> None:
        compat.end_backward(self._engine)

    def _apply(self, gradient: torch.Tensor, scale: float, lr: float) -> None:
        assert not self._stateless, "after leave() and form(), write_state() must come before the first update()"
        for piece, (start, stop) in zip(self._pieces, self._wants, strict=True):
            place = self._gradients[piece.flat][piece.offset : piece.offset + piece.count]
            place.copy_(gradient[start:stop])
        if scale < 1:
            for flat in self._gradients:
                flat.mul_(scale)
        compat.apply_gradients(self._engine, self._flats, self._gradients, lr)
