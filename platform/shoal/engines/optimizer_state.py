"""The vectors of a torch optimizer, read and written by their names."""

from __future__ import annotations

import torch

from shoal.job.optimizers import Optimizer
from shoal.optim.optimizers import group_state


def vector(optimizer: torch.optim.Optimizer, tensor: torch.Tensor, key: str) -> torch.Tensor | None:
    """The live vector `key` of `tensor`, or None while the optimizer has not made it yet, which means zeros.

    None too where its rule has no such vector: an optimizer may combine several.
    """
    return optimizer.state[tensor].get(key) if tensor in optimizer.state else None


def prepare(optimizer: torch.optim.Optimizer, spec: Optimizer, tensors: list[torch.Tensor], step: int) -> None:
    """Make the state of `tensors` as it is after `step` updates, with zeros where it must still be filled.

    After none it is what torch begins with: nothing. Vectors that exist keep their memory. The counters of
    `pytorch_optimizer`, which stand in the groups, decide nothing in the rules that are taken from it.
    """
    groups = {tensor: group for group in optimizer.param_groups for tensor in group["params"]}
    for tensor in tensors:
        if step == 0:
            optimizer.state.pop(tensor, None)
            continue
        # DeepSpeed lets groups have no parameters between steps; but there, all groups are alike in this.
        group = groups.get(tensor, optimizer.param_groups[0])
        names, counts = group_state(spec, group)
        state = optimizer.state[tensor]
        for name in names:
            if state.get(name) is None:
                state[name] = torch.zeros_like(tensor.detach())
        if counts:
            where = tensor.device if group.get("fused") else torch.device("cpu")
            state["step"] = torch.tensor(float(step), dtype=torch.float32, device=where)
