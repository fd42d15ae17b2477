"""Update rules: the job's optimizer as a torch optimizer. docs/optimizers.md says which there are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from shoal.errors import ConfigError
from shoal.job.optimizers import Optimizer
from shoal.optim import averaging
from shoal.optim.combined import Combined

_TORCH = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "adagrad": "Adagrad"}
_ELSEWHERE = {"lion": "Lion", "lars": "LARS", "lamb": "Lamb"}
_FUSED = ("sgd", "adam", "adamw", "adagrad")
_VECTORS = {
    "muon": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq"),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "lion": ("exp_avg",),
    "rmsprop": ("square_avg",),
    "adagrad": ("sum",),
}
_BUFFERED = ("sgd", "rmsprop", "lars")
"""Keep a `momentum_buffer` if there is momentum."""
_COUNTING = ("adam", "adamw", "rmsprop", "adagrad")
RULE = "rule"
"""Key of a parameter group: the rule by which it is updated, where an optimizer combines several."""


def state_names(spec: Optimizer) -> tuple[str, ...]:
    """Names, as torch gives them, of the vectors that the optimizer keeps for each parameter, and the average's.

    Where a rule combines two (muon), a parameter has only those of its own; the others count as zeros.
    """
    if spec.name == "muon":
        moments = (*_moments("muon", spec.values), *_moments("adamw", spec.values))
    else:
        moments = _moments(spec.name, spec.values)
    return moments if spec.ema is None else (*moments, averaging.NAME)


def group_state(spec: Optimizer, group: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """For the parameters of one group: names of the vectors kept for each, and whether each has a counter of steps."""
    rule = group.get(RULE, spec.name)
    moments = _moments(rule, spec.values)
    return moments if spec.ema is None else (*moments, averaging.NAME), rule in _COUNTING


def _moments(rule: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    buffer = ("momentum_buffer",) if rule in _BUFFERED and values["momentum"] else ()
    return (*_VECTORS.get(rule, ()), *buffer)


def make_optimizer(
    spec: Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    device: torch.device,
    hidden: Collection[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The optimizer over all trainable parameters, with a decayed group and one that is not.

    Parameters with fewer than two dimensions (biases, norms' scales) are not decayed. `device` is where the state will
    live; it decides whether torch's fused kernels are used, which do the same arithmetic in one pass over memory.
    `hidden`: what `hidden_weights` says of the model; only muon asks for it.
    Raises ConfigError if nothing is trainable, or if the rule is in a package that is not installed.
    """
    trainable = [p for _, p in named_parameters if p.requires_grad]
    if not trainable:
        raise ConfigError(
            "the model has no trainable parameter: every one has requires_grad=False, or task.build() returned a "
            "module without parameters; leave at least one parameter trainable"
        )
    if spec.name == "muon":
        made = _make_muon(spec, trainable, device, hidden)
    else:
        made = _make(spec.name, _groups(trainable, spec.values["weight_decay"]), spec.lr, spec.values, device)
    if spec.ema is not None:
        averaging.follow(made, spec.ema)
    return made


def hidden_weights(model: nn.Module) -> set[nn.Parameter]:
    """The matrices of a model's hidden layers: all but embeddings and the output, its last `nn.Linear`.

    So says whoever made muon: "scalar and vector parameters of the network, as well as the input and output layers,
    should be optimized by a standard method such as AdamW" (kellerjordan.github.io/posts/muon).
    """
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    outer = {m.weight for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))} | set(linear[-1:])
    return {p for p in model.parameters() if p.dim() == 2 and p not in outer}


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float, **options: Any) -> list[dict[str, Any]]:
    both: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for parameter in parameters:
        both[parameter.dim() < 2].append(parameter)
    return [
        {"params": some, "weight_decay": decay, **options}
        for some, decay in zip(both, (weight_decay, 0.0), strict=True)
        if some
    ]


def _make(
    name: str, groups: list[dict[str, Any]], lr: float, values: Mapping[str, Any], device: torch.device
) -> torch.optim.Optimizer:
    options = dict(values)
    if name in _ELSEWHERE:
        return _elsewhere(name)(_as_published(name, groups, options), lr=lr, **options)
    if name in _FUSED and device.type in ("cpu", "cuda"):
        options["fused"] = True
    made: torch.optim.Optimizer = getattr(torch.optim, _TORCH[name])(groups, lr=lr, **options)
    # DeepSpeed replaces an Adagrad that it sees by one of its own making, without our groups and the average.
    return Combined(made) if name == "adagrad" else made


def _as_published(name: str, groups: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """LAMB as in the paper's algorithm, version 3: the decay counts into the ratio, moments are not corrected for their
    beginning (which the ratio takes out again), and what is not decayed gets no ratio."""
    if name == "lamb":
        options |= {"weight_decouple": False, "adam_debias": True}
        for group in groups:
            group["adam"] = all(p.dim() < 2 for p in group["params"])
    return groups


def _elsewhere(name: str) -> Any:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ConfigError(
            f"optimizer.name={name} needs the package pytorch_optimizer, which cannot be imported ({error}); run: pip "
            f"install 'shoal[optim]'"
        ) from None
    return getattr(pytorch_optimizer, _ELSEWHERE[name])


def _make_muon(
    spec: Optimizer, trainable: list[nn.Parameter], device: torch.device, hidden: Collection[nn.Parameter]
) -> torch.optim.Optimizer:
    """Muon for the matrices of hidden layers, AdamW for the rest, under one learning rate.

    `match_rms_adamw` scales Muon's updates to the size that AdamW's usually have, so that one rate and one decay fit
    both (Liu et al. 2025, arXiv:2502.16982, section 2.2).
    """
    if not hasattr(torch.optim, "Muon"):
        raise ConfigError(f"optimizer.name=muon needs torch 2.9 or newer, this is {torch.__version__}; upgrade torch")
    inner, outer = [p for p in trainable if p in hidden], [p for p in trainable if p not in hidden]
    if not inner:
        raise ConfigError(
            "optimizer.name=muon updates the matrices of hidden layers, and the model has none that is trainable: "
            "only embeddings, its last Linear, and parameters that have not two dimensions; use optimizer.name=adamw"
        )
    values = spec.values
    own = {name: values[name] for name in ("momentum", "nesterov", "weight_decay")}
    groups = _groups(inner, values["weight_decay"], **{RULE: "muon"})
    parts: list[torch.optim.Optimizer] = [torch.optim.Muon(groups, lr=spec.lr, adjust_lr_fn="match_rms_adamw", **own)]
    if outer:
        adamw = {name: values[name] for name in ("betas", "eps", "weight_decay")}
        rest = _groups(outer, values["weight_decay"], **{RULE: "adamw"})
        parts.append(_make("adamw", rest, spec.lr, adamw, device))
    return Combined(*parts)
