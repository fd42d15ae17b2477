"""The replicated engine in `exact` numerics: everything on every member, and the same bits on any number of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shoal.engines import optimizer_state
from shoal.engines.exact import ExactStep
from shoal.engines.exact_base import ExactEngine
from shoal.engines.flat import lay_out
from shoal.engines.micro_batches import even_bounds
from shoal.engines.passages import group_by_module
from shoal.engines.replicated import ReplicatedEngine
from shoal.job import Job
from shoal.job.optimizers import RULES


class ExactReplicatedEngine(ExactEngine, ReplicatedEngine):
    """Parameters, gradients and the optimizer's vectors lie in one layout (`shoal.engines.flat`).

    Torch's fused optimizers treat the last elements of a tensor differently from the others (they round a product
    before they add it, or not), so what is updated together decides bits. Here it is whole sections without an end of
    their own, as in the exact ZeRO engine. A rule that must see whole layers gets the parameters themselves; it works
    with no other engine.
    """

    def __init__(self, job: Job, model: nn.Module, device: torch.device) -> None:
        super().__init__(job, model, device)
        names = {parameter: name for name, parameter in self._parameters.items()}
        groups = self._optimizer.param_groups
        layout = lay_out([[(names[p], p.shape) for p in group["params"]] for group in groups])
        self._flat = layout.zeros(device)
        self._step = ExactStep(layout, self._parameters, device)
        self._in_sections = not RULES[job.optimizer.name].needs
        self._section_of = {names[p]: i for i, group in enumerate(groups) for p in group["params"]}
        if self._in_sections:
            self._updated = [self._flat[start:stop] for start, stop in layout.sections]
            self._places: Sequence[tuple[int, int]] = layout.sections
            for group, section in zip(groups, self._updated, strict=True):
                group["params"] = [section]
        else:
            slots = [layout.slots[names[p]] for p in self._trainable]
            self._places = [(slot.start, slot.stop) for slot in slots]
        self._move_in()
        group_by_module(self._module)

    @torch.no_grad()
    def _move_in(self) -> None:
        """Let the model's parameters lie in the flat vector."""
        for name, place in self._step.layout.views(self._flat).items():
            place.copy_(self._parameters[name])
            self._parameters[name].data = place

    def form(self, rank: int, size: int, bounds: Sequence[int] | None = None) -> None:
        """Enter a view (collective). The state stays what it is; a view of fresh members takes rank 0's weights."""
        fresh = self._enter(rank, size)
        if fresh and size > 1:
            self._share_weights()
        self._step.enter(rank, bounds or even_bounds(self._job.batch.virtual_shards, size))

    def _apply(self, gradient: torch.Tensor, scale: float, lr: float) -> None:
        if scale < 1:
            gradient.mul_(scale)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        for tensor, (start, stop) in zip(self._updated, self._places, strict=True):
            tensor.grad = gradient[start:stop].view_as(tensor)
        self._optimizer.step()
        for tensor in self._updated:
            tensor.grad = None

    def _vector(self, name: str, key: str) -> torch.Tensor | None:
        if not self._in_sections or name not in self._section_of:
            return super()._vector(name, key)
        section = self._section_of[name]
        whole = optimizer_state.vector(self._optimizer, self._updated[section], key)
        if whole is None:
            return None
        slot, begun = self._step.layout.slots[name], self._step.layout.sections[section][0]
        return whole[slot.start - begun : slot.stop - begun].view(slot.shape)

    def _rebuild(self) -> None:
        super()._rebuild()
        self._move_in()
