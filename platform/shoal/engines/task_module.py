"""The task and its model as one module whose forward pass is the loss, and whose failures are the user's to read."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

from shoal.errors import ShoalError, TaskError
from shoal.tasks.base import Batch, Task

Want = Literal["loss", "metrics", "losses"]

_OURS = ("shoal.engines", "torch", "deepspeed", "contextlib")
_TALKS = ("torch.distributed", "deepspeed")


class TaskModule(nn.Module):
    """Wrapping the loss, not only the model, lets a task call any part of its model, in any order and any number of
    times: what wraps this module (DDP, DeepSpeed, autocast) sees one forward pass."""

    each: torch.Tensor | None = None
    """The losses of the samples of the last training pass, [samples], unweighted, where they are asked for."""

    def __init__(
        self, task: Task, model: nn.Module, device: torch.device, *, bf16: bool, keep_casts: bool, each: bool
    ) -> None:
        """`each`: keep every sample's loss."""
        super().__init__()
        self._each = each
        self.task = task
        self.model = model
        self._device_type = device.type
        self._bf16 = bf16
        self._keep_casts = keep_casts

    def forward(self, batch: Batch, *, weights: torch.Tensor | None = None, want: Want = "loss") -> Any:
        """The task's loss, with `weights` ([samples]) the mean of weight x sample's loss; or its metrics, or the loss
        of each sample, [samples]."""
        with self._precision():
            if want == "metrics":
                return self.task.evaluate(self.model, batch)
            if want == "loss" and weights is None and not self._each:
                return self.task.loss(self.model, batch)
            losses = self.task.sample_losses(self.model, batch)
            check_losses(losses, batch, self.task)
            if want == "losses":
                return losses
            if self._each:
                self.each = losses.detach()
            return losses.mean() if weights is None else (weights * losses).mean()

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._bf16:
            return nullcontext()
        # Casts of weights are kept for the pass, except where keeping them would undo the sharding of the weights.
        return torch.autocast(self._device_type, dtype=torch.bfloat16, cache_enabled=self._keep_casts)


def check_loss(loss: Any, task: Task) -> None:
    """Raise TaskError unless `loss` is a scalar that depends on a trainable parameter. Does not wait for the device."""
    name = f"{type(task).__name__}.loss()"
    if not isinstance(loss, torch.Tensor):
        raise TaskError(f"{name} returned {type(loss).__name__}, not a Tensor; return the mean loss over the batch")
    if loss.dim() != 0:
        raise TaskError(
            f"{name} returned a tensor of shape {list(loss.shape)}, not a scalar; return its mean: loss.mean()"
        )
    if not loss.is_floating_point():
        raise TaskError(f"{name} returned dtype {loss.dtype}, which has no gradient; return a floating-point loss")
    if not loss.requires_grad:
        raise TaskError(
            f"{name} returned a loss that does not depend on any trainable parameter (requires_grad=False); "
            f"look for .detach(), .item(), torch.no_grad(), or a model whose parameters are all frozen"
        )


def check_losses(losses: Any, batch: Batch, task: Task) -> None:
    """Raise TaskError unless `losses` holds one number per sample."""
    count = len(next(iter(batch.values())))
    if not isinstance(losses, torch.Tensor) or losses.shape != (count,):
        shape = list(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise TaskError(
            f"{type(task).__name__}.sample_losses() returned {shape} for {count} samples; return a tensor [{count}]"
        )


def check_metrics(metrics: Any, task: Task) -> dict[str, float]:
    """The task's metrics as numbers, with one wait for the device. Raises TaskError unless all are scalars."""
    name = f"{type(task).__name__}.evaluate()"
    if not isinstance(metrics, dict) or not metrics:
        raise TaskError(
            f"{name} returned {type(metrics).__name__}; return a dict of at least one metric: {{'loss': …}}"
        )
    values = []
    for key, value in metrics.items():
        value = torch.as_tensor(value)
        if value.numel() != 1:
            raise TaskError(f"{name} returned {key!r} of shape {list(value.shape)}; each metric must be a scalar mean")
        values.append(value.detach().to(torch.float64 if value.device.type == "cpu" else torch.float32).reshape(()))
    where = next((v.device for v in values if v.device.type != "cpu"), torch.device("cpu"))
    return dict(zip(metrics, torch.stack([v.to(where) for v in values]).tolist(), strict=True))


@contextmanager
def blame(task: Task, doing: str) -> Iterator[None]:
    """Turn what the user's code raises inside into TaskError with its traceback; let through what a peer's loss causes.

    Both kinds surface in the same calls: gradients are reduced during the backward pass, and ZeRO-3 gathers weights in
    the middle of the user's forward pass.
    """
    try:
        yield
    except ShoalError:
        raise
    except Exception as error:  # user code may raise anything; all but failed collectives is reported as theirs
        if from_collective(error):
            raise
        raise TaskError(
            f"{type(task).__name__} failed in {doing}: {type(error).__name__}: {error}\n{_their_traceback(error)}"
        ) from error


def from_collective(error: BaseException) -> bool:
    """Whether `error` came out of communication with other members, not out of the user's code."""
    if isinstance(error, torch.distributed.DistError):
        return True
    frame, last = error.__traceback__, ""
    while frame is not None:
        last = frame.tb_frame.f_globals.get("__name__", "")
        frame = frame.tb_next
    # The reducer of DDP works inside autograd, where only the message tells; gloo and NCCL sign theirs.
    return last.startswith(_TALKS) or (
        isinstance(error, RuntimeError)
        and last.startswith("torch.")
        and any(sign in str(error).lower() for sign in ("gloo", "nccl", "process group", "processgroup"))
    )


def _their_traceback(error: BaseException) -> str:
    """The traceback from the first frame that is neither ours nor torch's."""
    frame = error.__traceback__
    while frame is not None and _is_ours(frame.tb_frame.f_globals.get("__name__", "")):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame or error.__traceback__)).rstrip()


def _is_ours(name: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in _OURS)
