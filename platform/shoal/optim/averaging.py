"""The exponential moving average of the weights: one more vector of the optimizer, wherever that keeps its vectors.

So it is divided, copied to buddies, moved and saved with the others, in every engine. Source: Polyak and Juditsky 1992,
"Acceleration of stochastic approximation by averaging"; begun as `torch.optim.swa_utils.AveragedModel` begins it, with
the weights after the first update.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NAME = "ema"
"""Of the vector, beside those that torch's optimizers name."""


def follow(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """From now on each update of `optimizer` ends with average = decay * average + (1 - decay) * weights."""
    optimizer.register_step_post_hook(partial(_after_step, decay=decay))


def _after_step(optimizer: torch.optim.Optimizer, *_: Any, decay: float) -> None:
    import torch

    # An engine may update one group at a time: what is in the groups now is what was updated.
    updated = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    known = [p for p in updated if NAME in optimizer.state[p]]
    averages = [optimizer.state[p][NAME] for p in known]
    if known:
        torch._foreach_lerp_(averages, [p.detach() for p in known], 1.0 - decay)
    for tensor in updated:
        if NAME not in optimizer.state[tensor]:
            optimizer.state[tensor][NAME] = tensor.detach().clone()


def swap(optimizer: torch.optim.Optimizer, tensors: Iterable[torch.Tensor]) -> None:
    """Exchange these tensors of the optimizer with their averages, bit for bit; a second time undoes it."""
    for tensor in tensors:
        average = optimizer.state[tensor][NAME]
        weights = tensor.detach().clone()
        tensor.detach().copy_(average)
        average.copy_(weights)
