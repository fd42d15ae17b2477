"""Update rules: the job's optimizer as a torch optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError
from shoal.optim import averaging

if TYPE_CHECKING:
    import torch

    from shoal.job.spec import Optimizer


def state_names(spec: Optimizer) -> tuple[str, ...]:
    """Names, as torch gives them, of the vectors that the optimizer keeps for each parameter, and the average's."""
    moments = ("exp_avg", "exp_avg_sq") if spec.name == "adamw" else ("momentum_buffer",) if spec.momentum else ()
    return moments if spec.ema is None else (*moments, averaging.NAME)


def make_optimizer(
    spec: Optimizer, named_parameters: Iterable[tuple[str, torch.nn.Parameter]], device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, with a decayed group and one that is not.

    Parameters with fewer than two dimensions (biases, norms' scales) are not decayed. `device` is where the state will
    live; it decides whether torch's fused kernels are used, which do the same arithmetic in one pass over memory.
    Raises ConfigError if nothing is trainable.
    """
    import torch

    trainable = [p for _, p in named_parameters if p.requires_grad]
    if not trainable:
        raise ConfigError(
            "the model has no trainable parameter: every one has requires_grad=False, or task.build() returned a "
            "module without parameters; leave at least one parameter trainable"
        )
    decayed = [p for p in trainable if p.dim() >= 2]
    plain = [p for p in trainable if p.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((decayed, spec.weight_decay), (plain, 0.0))
        if params
    ]
    fused = device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in trainable)
    if spec.name == "adamw":
        made: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fused)
    else:
        made = torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=fused)
    if spec.ema is not None:
        averaging.follow(made, spec.ema)
    return made
