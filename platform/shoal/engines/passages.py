"""The same grouping of gradients as in ZeRO-3, in every engine.

Where a tensor is used several times, autograd adds up the gradients of its uses in the order of their calls. ZeRO-3
puts a node of its own in front of every module's inputs; so the uses inside the module are added up first, and their
sum then counts as one use: another grouping, other bits. In `exact` numerics the other engines put an identity at the
same places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def group_by_module(root: nn.Module) -> None:
    """Add up gradients of what enters a module inside that module first. For the life of `root`; costs some
    microseconds per call of a module."""
    for module in root.modules():
        if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            module.register_forward_pre_hook(_pass_through)


def _pass_through(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_identity(value) for value in inputs) if torch.is_grad_enabled() else inputs


def _identity(value: Any) -> Any:
    """`value` with every tensor in it behind a node of its own in the graph."""
    if isinstance(value, torch.Tensor):
        # A view: its gradient goes through as it is, and a module that works in place still changes its input.
        return value.view_as(value) if value.requires_grad and value.layout is torch.strided else value
    if isinstance(value, (tuple, list)):
        parts = [_identity(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        value.update({key: _identity(part) for key, part in value.items()})
    return value
