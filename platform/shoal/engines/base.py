"""What all engines share: running the task, watching the model in its first step, agreeing on what was seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from shoal.engines import garbage
from shoal.engines.buffers import StepBuffers, has_batch_norm
from shoal.engines.clock import StepClock
from shoal.engines.pass_norms import PassNorms
from shoal.engines.protocol import StepTimes
from shoal.engines.randomness import draws, positions
from shoal.engines.task_module import TaskModule, blame, check_loss, check_metrics
from shoal.job import ByNoise, Job
from shoal.optim.noise import Parts
from shoal.tasks.base import Batch


def samples_in(batch: Batch) -> int:
    """How many samples a batch has."""
    return len(next(iter(batch.values())))


class EngineBase(ABC):
    """A model in training on one member. See `shoal.engines.protocol.Engine` for what the methods promise."""

    _keep_casts = True
    _hooks_norms = True
    _buffer_kind = StepBuffers

    def __init__(self, job: Job, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._job = job
        self._task = job.task
        bf16 = job.engine.precision == "bf16"
        self._module = TaskModule(
            job.task,
            model,
            device,
            bf16=bf16,
            keep_casts=self._keep_casts,
            each=bool(job.data.sources) and job.task.tells_samples(),
        )
        self._parameters = dict(model.named_parameters())
        self._trainable = [p for p in self._parameters.values() if p.requires_grad]
        self._clock = StepClock(device)
        self._buffers = self._buffer_kind(model)
        self._rank, self._size = 0, 1
        self._applied = 0
        self._fresh = True
        self._mixes_samples = has_batch_norm(model)
        self._draws_random: bool | None = None
        self._marks_end: Any = None
        self._agreed = False
        self._left_before = False
        self._noted: tuple[int, ...] = ()
        self._parts = Parts()
        self._pass_norms = PassNorms(self._trainable) if self._hooks_norms else None

    @property
    def times(self) -> StepTimes:
        """Seconds of the last step by part, on this member."""
        return self._clock.times

    @property
    def applied(self) -> int:
        """Updates that the state has been through."""
        return self._applied

    @property
    def sample_losses(self) -> torch.Tensor | None:
        """Loss of each sample of the last `micro_step`, [samples]; None where they are not asked for."""
        return self._module.each

    def step_losses(self) -> tuple[tuple[int, float], ...]:
        """Nothing: a member knows the losses of its own shards, from `micro_step`."""
        return ()

    def step_parts(self) -> Parts:
        """What the gradients of this member's passes in the last step tell of their noise."""
        return self._parts

    def note(self, numbers: Sequence[int]) -> None:
        """A 64-bit number for each of this member's virtual shards in this step, for everybody to hear."""
        self._noted = tuple(numbers)

    def step_notes(self) -> tuple[int, ...]:
        """Nothing: only in `exact` numerics something travels with the gradients."""
        return ()

    @property
    @abstractmethod
    def equal_micro_batches(self) -> bool:
        """True if every member must run the same number of micro-batches per step."""

    @property
    def merges_shards(self) -> bool | None:
        """Whether virtual shards may share a forward pass. None until the members agreed, in their first update.

        They may if the task promises it (`per_sample`) and the model neither drew random numbers, nor changed a
        buffer, nor has batch norm.
        """
        if not self._agreed:
            return None
        if isinstance(self._job.batch.growth, ByNoise):
            return False  # what decides about the batch must not depend on how many members measure it
        return self._task.per_sample and not (self._draws_random or self._buffers.names or self._mixes_samples)

    def _enter(self, rank: int, size: int) -> bool:
        """Note the place in the view; returns whether the whole view starts afresh (collective).

        A member that joins has seen nothing of the model yet, so then all look again: they must divide alike.
        """
        self._rank, self._size = rank, size
        known, fresh = self._agree([self._agreed, self._fresh], dist.ReduceOp.MIN)
        if not known:
            self._agreed, self._buffers = False, self._buffer_kind(self.model)
        return fresh

    def _depart(self) -> None:
        """Forget what belongs to a view that ends."""
        if self._marks_end is not None:
            self._marks_end.remove()
            self._marks_end = None
        self._abandon_step()
        # What a backward pass that failed has left in autograd's queues, with its graph and the groups that its hooks
        # know of, stays there until the next pass on the same device.
        torch.ones((), device=self.device, requires_grad=True).clone().backward()
        garbage.collect(settle=not self._left_before)
        self._left_before = True

    def _abandon_step(self) -> None:
        """Drop what a step left that will not be finished: gradients, buffers of its shards, marks of time."""
        self._buffers.abandon_step()
        self._noted = ()
        if self._pass_norms is not None:
            self._pass_norms.forget()
        self._clock.forget()
        self.model.zero_grad(set_to_none=True)

    def _run_shard(
        self, run: Callable[..., torch.Tensor], batch: Batch, share: float, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """The forward pass: the task's loss through `run`, checked, with the model's buffers kept in order."""
        first = self._draws_random is None
        before = positions(self.device) if first else ()
        self._buffers.begin_shard()
        with blame(self._task, "loss()"):
            loss = run(batch, weights=weights)
        check_loss(loss, self._task)
        self._buffers.end_shard(share)
        if first:
            self._draws_random = draws(before, positions(self.device))
        return loss

    def _run_backward(self, backward: Callable[[], Any]) -> None:
        order: list[nn.Parameter] = []
        first = self._marks_end is None
        # In a view's first pass, find out which parameter gets its gradient last: there computing ends in all others.
        handles = [p.register_post_accumulate_grad_hook(order.append) for p in self._trainable] if first else []
        try:
            with blame(self._task, "the backward pass of loss()"):
                backward()
        finally:
            for handle in handles:
                handle.remove()
        if order:
            self._marks_end = order[-1].register_post_accumulate_grad_hook(self._clock.gradients_ready)

    def _end_norms(self, batch: Batch, scale: float) -> None:
        """After a backward pass whose loss was multiplied by `scale`."""
        if self._pass_norms is not None:
            self._pass_norms.end_pass(samples_in(batch), scale)

    def _take_norms(self) -> Parts:
        return self._pass_norms.take() if self._pass_norms is not None else Parts()

    def _compare_notes(self) -> None:
        """In the first step: what is this model like? (Collective then.)"""
        if not self._agreed:
            seen = self._agree([bool(self._draws_random), *self._buffers.changed()], dist.ReduceOp.MAX)
            self._draws_random = seen[0]
            self._buffers.keep_watching(tuple(n for n, c in zip(self._buffers.names, seen[1:], strict=True) if c))
            self._agreed = True

    def _settle(self) -> None:
        """Everything that members must tell each other before a step is applied, but its gradients (collective)."""
        self._compare_notes()
        self._buffers.settle(self._size)

    def _confirm(self) -> None:
        """Make sure that what was received is what was sent; what follows is this member's own business (collective).

        On the CPU a collective that returns has succeeded. On a GPU it returns before it is done, and one that is
        aborted because a peer is lost leaves garbage without an error. So wait for the device, then ask the others, on
        the CPU: if they answer, nobody had aborted.
        """
        if self.device.type == "cuda" and self._size > 1:
            torch.cuda.current_stream(self.device).synchronize()
            dist.all_reduce(torch.zeros(1))

    def _finish(self, *, applied: bool) -> None:
        """The step is over: count it, give the model its new buffers. Cannot fail because of others."""
        self._buffers.finish(applied=applied)
        self._applied += applied
        self._fresh = self._fresh and not applied

    def _agree(self, flags: list[bool], how: Any) -> list[bool]:
        if self._size == 1:
            return flags
        tensor = torch.tensor(flags, dtype=torch.int32, device=self.device)
        dist.all_reduce(tensor, how)
        return [bool(flag) for flag in tensor.tolist()]

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """The task's metrics on `batch`, without gradients, in eval mode. Raises TaskError."""
        with self._evaluating("evaluate()"):
            metrics = self._module(batch, want="metrics")
        return check_metrics(metrics, self._task)

    def score(self, batch: Batch) -> torch.Tensor:
        """The loss of each sample, [samples], without gradients, in eval mode. Raises TaskError."""
        begun = self._clock.mark()
        with self._buffers.set_back(), self._evaluating("sample_losses()"):
            losses: torch.Tensor = self._module(batch, want="losses")
        self._clock.end_pass(begun)
        return losses

    @contextmanager
    def _evaluating(self, method: str) -> Iterator[None]:
        """Run `method` of the task without gradients, in eval mode. Raises TaskError."""
        training = [m for m in self.model.modules() if m.training]
        self.model.eval()
        try:
            with torch.no_grad(), blame(self._task, method):
                yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their moving average, if there is one (collective)."""
        if self._job.optimizer.ema is None or not self._applied:
            yield
            return
        self._swap_average()
        try:
            yield
        except BaseException:
            if self.keeps_state:  # here that needs nobody else
                self._swap_average()
            raise
        self._swap_average()

    @property
    @abstractmethod
    def keeps_state(self) -> bool:
        """True: the state outlives `leave`."""

    @abstractmethod
    def _swap_average(self) -> None:
        """Exchange weights and averages."""

    def _rebuild(self) -> None:
        """Put the weights and buffers of a freshly built model into this one."""
        from shoal.engines.factory import build_model

        new = build_model(self._job)
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                self._parameters[name].data = parameter.detach().to(self.device)
            for name, buffer in new.named_buffers():
                self.model.get_buffer(name).copy_(buffer)
        self._applied, self._fresh, self._agreed, self._draws_random = 0, True, False, None
        self._buffers = self._buffer_kind(self.model)
