"""Buffers that change while training, such as the running statistics of batch norm, for any number of members.

Plain data parallelism lets every process keep statistics of its own and saves those of rank 0, so the result depends
on how many there are. Here each virtual shard starts from the values that the step began with, and the step's new
value is the mean over all virtual shards: the same on one member as on eight. With V shards and momentum m this equals
one update with the mean of the shards' statistics. Integers (`num_batches_tracked`) advance once per step.

A model without such buffers pays nothing: which ones change is seen in the first step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn


class StepBuffers:
    """The changing buffers of one model over the shards of a step. `names` are watched; at first all of them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.names = tuple(name for name, _ in model.named_buffers())
        self._before: dict[str, torch.Tensor] = {}
        self._sums: dict[str, torch.Tensor] = {}

    def begin_shard(self) -> None:
        """Before a forward pass: the values that the step began with."""
        if not self.names:
            return
        with torch.no_grad():
            if not self._before:
                self._before = {name: self._model.get_buffer(name).clone() for name in self.names}
                return
            for name, value in self._before.items():
                self._model.get_buffer(name).copy_(value)

    def end_shard(self, share: float) -> None:
        """After a forward pass: remember what it made of them."""
        with torch.no_grad():
            for name in self.names:
                value = self._model.get_buffer(name)
                if not value.is_floating_point():
                    self._sums[name] = value.clone()
                elif name in self._sums:
                    self._sums[name].add_(value, alpha=share)
                else:
                    self._sums[name] = value * share

    @contextmanager
    def set_back(self) -> Iterator[None]:
        """For a pass that is no part of the step: inside, the values that the step began with; afterwards those of
        before, whatever the pass made of them."""
        with torch.no_grad():
            held = {name: self._model.get_buffer(name).clone() for name in self.names}
            for name, value in self._before.items():
                self._model.get_buffer(name).copy_(value)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in held.items():
                    self._model.get_buffer(name).copy_(value)

    def changed(self) -> tuple[bool, ...]:
        """For each of `names`, whether a shard of this step changed it here."""
        return tuple(not torch.equal(self._model.get_buffer(name), self._before[name]) for name in self.names)

    def keep_watching(self, names: tuple[str, ...]) -> None:
        """From now on only `names` change; the others get back what the step began with."""
        with torch.no_grad():
            for name in set(self.names) - set(names):
                self._model.get_buffer(name).copy_(self._before.pop(name))
                self._sums.pop(name, None)
        self.names = names

    def settle(self, size: int) -> None:
        """Find out the step's new values (collective if any change). The model does not have them yet."""
        floats = [n for n in self.names if self._before[n].is_floating_point()]
        if not floats or size == 1:
            return
        with torch.no_grad():
            flat = torch.cat([self._sums[n].reshape(-1).float() for n in floats])
            dist.all_reduce(flat)
            for name, part in zip(floats, flat.split([self._sums[n].numel() for n in floats]), strict=True):
                self._sums[name] = part.view_as(self._sums[name])

    def finish(self, *, applied: bool) -> None:
        """Give the model the step's new values, or the old ones if the step was not applied."""
        with torch.no_grad():
            for name in self.names:
                self._model.get_buffer(name).copy_((self._sums if applied else self._before)[name])
        self._before, self._sums = {}, {}

    def abandon_step(self) -> None:
        """Forget a step that will not be finished here, for example because a peer was lost in it."""
        if self._before:
            self.finish(applied=False)


def persistent_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> live tensor of the buffers that a checkpoint must hold, each once."""
    kept = model.state_dict(keep_vars=True).keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the samples of a pass influence each other through batch statistics."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules())
