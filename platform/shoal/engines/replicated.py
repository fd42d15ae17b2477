"""Every member holds the whole state; gradients are averaged by torch's DistributedDataParallel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from shoal.engines import optimizer_state
from shoal.engines.base import EngineBase
from shoal.engines.buffers import persistent_buffers
from shoal.engines.protocol import ReadState
from shoal.engines.whole_state import pack, slice_of, take_over, take_over_buffers
from shoal.job import Job
from shoal.optim import averaging
from shoal.optim.optimizers import hidden_weights, make_optimizer, state_names
from shoal.state.layout import Extent, Shard, divide
from shoal.tasks.base import Batch


class ReplicatedEngine(EngineBase):
    """Replicated data parallelism. Alone in a view it runs the bare module.

    The gradient is the sum over members of share x gradient. DDP takes the mean over members instead, dividing while
    it copies into its buckets, which costs nothing; so losses are scaled by share x size. Where members have equal
    shares that is exactly 1.
    """

    def __init__(self, job: Job, model: nn.Module, device: torch.device) -> None:
        super().__init__(job, model, device)
        self._optimizer = make_optimizer(job.optimizer, self._parameters.items(), device, hidden_weights(model))
        self._updated: list[torch.Tensor] = list(self._trainable)
        self._wrapped: DistributedDataParallel | None = None

    @property
    def equal_micro_batches(self) -> bool:
        """False: only the last backward pass of a step is collective."""
        return False

    @property
    def keeps_state(self) -> bool:
        """True."""
        return True

    def form(self, rank: int, size: int, bounds: Sequence[int] | None = None) -> None:
        """Enter a view (collective). The state stays what it is; a view of fresh members takes rank 0's weights."""
        fresh = self._enter(rank, size)
        if size == 1:
            return
        if fresh:
            self._share_weights()
        with warnings.catch_warnings():
            # `broadcast_buffers` has a new name in recent torch; the old one is right in every version we support.
            warnings.simplefilter("ignore", FutureWarning)
            self._wrapped = DistributedDataParallel(
                self._module, broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True
            )

    @torch.no_grad()
    def _share_weights(self) -> None:
        for tensor in (*self._parameters.values(), *self.model.buffers()):
            dist.broadcast(tensor, 0)

    def leave(self) -> None:
        """Let go of the view. The state stays."""
        self._wrapped = None
        self._depart()

    def micro_step(
        self, batch: Batch, share: float, *, last: bool, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Forward and backward; returns the detached loss. Collective if `last`. Raises TaskError."""
        begun = self._clock.mark()
        if self._wrapped is None:
            loss = self._pass(self._module, batch, share, weights)
        elif last:
            loss = self._pass(self._wrapped, batch, share, weights)
        else:
            with self._wrapped.no_sync():
                loss = self._pass(self._wrapped, batch, share, weights)
        self._clock.end_pass(begun)
        return loss

    def _pass(self, module: nn.Module, batch: Batch, share: float, weights: torch.Tensor | None) -> torch.Tensor:
        loss = self._run_shard(module, batch, share, weights)
        scale = share * self._size
        scaled = loss if scale == 1.0 else loss * scale
        if self._wrapped is not None and self._wrapped.require_backward_grad_sync:
            scaled = _Reach.apply(scaled, *self._trainable)
        self._run_backward(scaled.backward)
        self._end_norms(batch, scale)
        return loss.detach()

    def update(self, lr: float) -> float:
        """Clip and apply. Returns the global gradient norm; if it is not finite nothing is applied.

        Whatever needs the others comes first: if this raises nothing was applied, and if it returns everything was.
        """
        self._settle()
        gradients = self._gradients()
        total = get_total_norm(gradients)
        norm = total.item()
        self._confirm()
        self._parts = self._take_norms()
        begun = self._clock.mark()
        applied = math.isfinite(norm)
        if applied:
            limit = self._job.optimizer.clip_norm
            if limit is not None and norm > limit:
                clip_grads_with_norm_(self._trainable, limit, total)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._finish(applied=applied)
        self._clock.end_update(begun)
        return norm

    def _gradients(self) -> list[torch.Tensor]:
        """Gradients of all trainable parameters. One that no sample used has gradient zero, as in every engine."""
        for parameter in self._trainable:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [p.grad for p in self._trainable if p.grad is not None]

    def _swap_average(self) -> None:
        averaging.swap(self._optimizer, self._updated)

    def holdings(self) -> tuple[Extent, ...]:
        """An even part of the whole state."""
        return self._part(self._rank, self._size)

    def _part(self, part: int, parts: int) -> tuple[Extent, ...]:
        return divide([(name, p.numel()) for name, p in self._parameters.items()], part, parts)

    def read_state(self) -> Shard:
        """A host copy of this member's part. Not collective."""
        return self.offered(self._rank, self._size)

    def offered(self, part: int, parts: int) -> Shard:
        """A host copy of an even part of the live state. Not collective."""
        extents = self._part(part, parts)

        def piece(key: str, extent: Extent) -> torch.Tensor | None:
            parameter = self._parameters[extent.name]
            whole = parameter if key == "param" else self._vector(extent.name, key)
            return None if whole is None else slice_of(whole, extent)

        keys = ("param", *state_names(self._job.optimizer))
        tensors = {key: pack(extents, lambda e, k=key: piece(k, e), self.device) for key in keys}  # type: ignore[misc]
        buffers = {name: b.detach().to("cpu", copy=True) for name, b in persistent_buffers(self.model).items()}
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Shard(extents, tensors, {"optimizer_step": self._applied}, buffers)

    def _vector(self, name: str, key: str) -> torch.Tensor | None:
        """The live vector `key` of parameter `name`; None: there is none yet, which means zeros."""
        return optimizer_state.vector(self._optimizer, self._parameters[name], key)

    def wanted(self) -> dict[str, tuple[Extent, ...]]:
        """Everything; of parameters that are frozen no optimizer state."""
        trainable = tuple(Extent(name, 0, p.numel()) for name, p in self._parameters.items() if p.requires_grad)
        return {"param": self._part(0, 1), **dict.fromkeys(state_names(self._job.optimizer), trainable)}

    def write_state(
        self, read: ReadState, scalars: dict[str, Any], buffers: dict[str, torch.Tensor], *, shared: bool = True
    ) -> None:
        """Take over a state (collective if `shared`). Raises CheckpointError."""
        step = int(scalars["optimizer_step"])
        place = (self._rank, self._size) if shared else (0, 1)
        self._abandon_step()
        take_over(read, "param", dict(self._parameters), *place, self.device)
        optimizer_state.prepare(self._optimizer, self._job.optimizer, self._updated, step)
        for key in state_names(self._job.optimizer) if step else ():
            targets = {n: v for n in self._parameters if (v := self._vector(n, key)) is not None}
            take_over(read, key, targets, *place, self.device)
        take_over_buffers(persistent_buffers(self.model), buffers)
        self._applied, self._fresh = step, False

    def reset(self) -> None:
        """Back to the initial weights, as freshly built. Only between views."""
        if not self._fresh:
            self._rebuild()
            optimizer_state.prepare(self._optimizer, self._job.optimizer, self._updated, 0)

    def full_parameters(self) -> dict[str, torch.Tensor]:
        """All parameters, fp32, on the host of rank 0; empty elsewhere."""
        if self._rank:
            return {}
        return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self._parameters.items()}


class _Reach(torch.autograd.Function):
    """The loss unchanged, but with every parameter in its graph.

    DDP waits until each parameter's gradient is ready, and one that the loss does not use, here or on another member,
    would never be. DDP's own remedy (`find_unused_parameters`) searches the graph in every step and must be asked for.
    Here each such parameter is reported ready at once, without a gradient, which DDP reduces as zeros. Two microseconds
    per parameter, and no user has to know.
    """

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.parameters = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (gradient, *(None,) * ctx.parameters)
