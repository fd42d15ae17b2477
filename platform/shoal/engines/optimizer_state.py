"""The vectors of a torch optimizer, read and written by their names."""

from __future__ import annotations

import torch

from shoal.job.spec import Optimizer
from shoal.optim.optimizers import state_names


def vector(optimizer: torch.optim.Optimizer, tensor: torch.Tensor, key: str) -> torch.Tensor | None:
    """The live vector `key` of `tensor`, or None while the optimizer has not made it yet, which means zeros."""
    return optimizer.state[tensor].get(key) if tensor in optimizer.state else None


def prepare(optimizer: torch.optim.Optimizer, spec: Optimizer, tensors: list[torch.Tensor], step: int) -> None:
    """Make the state of `tensors` as it is after `step` updates, with zeros where it must still be filled.

    After none it is what torch begins with: nothing. Vectors that exist keep their memory.
    """
    fused = optimizer.param_groups[0].get("fused")
    for tensor in tensors:
        if step == 0:
            optimizer.state.pop(tensor, None)
            continue
        state = optimizer.state[tensor]
        for key in state_names(spec):
            if state.get(key) is None:
                state[key] = torch.zeros_like(tensor.detach())
        if spec.name == "adamw":
            where = tensor.device if fused else torch.device("cpu")
            state["step"] = torch.tensor(float(step), dtype=torch.float32, device=where)
