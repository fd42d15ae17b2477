"""The update rule of a job, and what is known of each: its values, their defaults, the engines that it works with.

docs/optimizers.md shows these tables; a test holds the page to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from shoal.errors import ConfigError
from shoal.job.checks import at_least, choice, fraction, positive

Name = Literal["sgd", "adam", "adamw", "rmsprop", "adagrad", "lion", "lars", "lamb", "muon"]
NAMES: tuple[str, ...] = get_args(Name)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of an update rule."""

    defaults: Mapping[str, Any]
    """Fields of `Optimizer` that it uses, each with its default; not `lr`, `clip_norm` and `ema`, which all use."""
    source: str
    needs: str = ""
    """What it must see at once. Empty: it updates each element by itself, and so any part of a parameter."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Values of `engine.name` that it works with. ZeRO gives each member a part of one long vector."""
        return ("replicated",) if self.needs else ("replicated", "zero")


RULES: Mapping[str, Rule] = {
    "sgd": Rule(
        {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
        "Sutskever et al. 2013, proceedings.mlr.press/v28/sutskever13; as torch.optim.SGD has it",
    ),
    "adam": Rule(
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
        "Kingma & Ba 2015, arXiv:1412.6980",
    ),
    "adamw": Rule(
        {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
        "Loshchilov & Hutter 2019, arXiv:1711.05101; values of Brown et al. 2020, arXiv:2005.14165",
    ),
    "rmsprop": Rule(
        {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0, "weight_decay": 0.0},
        "Hinton 2012, lecture 6 of csc321; values of torch.optim.RMSprop",
    ),
    "adagrad": Rule(
        {"eps": 1e-10, "weight_decay": 0.0},
        "Duchi et al. 2011, jmlr.org/papers/v12/duchi11a; values of torch.optim.Adagrad",
    ),
    "lion": Rule(
        {"betas": (0.9, 0.99), "weight_decay": 0.3},
        "Chen et al. 2023, arXiv:2302.06675: a third of AdamW's rate or less, three times its decay or more",
    ),
    "lars": Rule(
        {"momentum": 0.9, "nesterov": False, "trust_coefficient": 1e-3, "weight_decay": 1e-4},
        "You et al. 2017, arXiv:1708.03888",
        needs="norms of whole layers",
    ),
    "lamb": Rule(
        {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01},
        "You et al. 2020, arXiv:1904.00962",
        needs="norms of whole layers",
    ),
    "muon": Rule(
        {"momentum": 0.95, "nesterov": True, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
        "Jordan et al. 2024, kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982",
        needs="whole matrices",
    ),
}

OWN = ("betas", "eps", "momentum", "nesterov", "alpha", "trust_coefficient", "weight_decay")
"""Fields that belong to the rules that use them: another rule begins with its own defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """The update rule. Parameters with fewer than two dimensions are not decayed.

    None in a value of the rule's own (`betas` to `weight_decay`) stands for the rule's default; docs/optimizers.md has
    them. A value that the rule does not use is refused.
    """

    name: Name = "adamw"
    lr: float = 1e-3
    """Peak learning rate; the schedule scales it."""
    betas: tuple[float, float] | None = None
    """Decay per step of the averages of gradients and of their squares (lion: of the update's, of the kept one)."""
    eps: float | None = None
    """Added to denominators."""
    momentum: float | None = None
    nesterov: bool | None = None
    """Look ahead along the momentum."""
    alpha: float | None = None
    """Of rmsprop: decay per step of the average of squared gradients."""
    trust_coefficient: float | None = None
    """Of lars: an update's norm as a share of its layer's."""
    weight_decay: float | None = None
    """For sgd, adam, rmsprop, adagrad and lars an addition to the gradient, for the others to the update."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None: no clipping."""
    ema: float | None = None
    """Decay per step of a moving average of the weights, for example 0.999; evaluation and the export then use the
    average, training and checkpoints keep both. None: no average."""

    def __post_init__(self) -> None:
        choice("optimizer.name", self.name, NAMES)
        positive("optimizer.lr", self.lr)
        self._check_used()
        for name in ("eps", "trust_coefficient", "clip_norm"):
            if (value := getattr(self, name)) is not None:
                positive(f"optimizer.{name}", value)
        for name in ("momentum", "alpha", "ema"):
            if (value := getattr(self, name)) is not None:
                fraction(f"optimizer.{name}", value)
        choice("optimizer.nesterov", self.nesterov, (None, True, False))
        if self.weight_decay is not None:
            at_least("optimizer.weight_decay", self.weight_decay, 0)
        if self.betas is not None:
            if len(self.betas) != 2:
                raise ConfigError(f"optimizer.betas={self.betas!r} must be two numbers, for example (0.9, 0.95)")
            for beta in self.betas:
                fraction("optimizer.betas", beta)
        if self.values.get("nesterov") and not self.values["momentum"]:
            raise ConfigError(
                "optimizer.nesterov=true looks ahead along the momentum, but optimizer.momentum=0; set it to 0.9, or "
                "leave nesterov out"
            )

    def _check_used(self) -> None:
        unused = [name for name in OWN if getattr(self, name) is not None and name not in RULES[self.name].defaults]
        if unused:
            name = unused[0]
            users = [other for other, rule in RULES.items() if name in rule.defaults]
            raise ConfigError(
                f"optimizer.{name}={getattr(self, name)!r} would have no effect: {self.name} has no such value (it has "
                f"{', '.join(RULES[self.name].defaults)}); leave it out (optimizer.{name}=none), or use "
                f"{' or '.join(users)}"
            )

    @property
    def values(self) -> dict[str, Any]:
        """The rule's own values, with defaults where none are set."""
        defaults = RULES[self.name].defaults
        return {name: default if (v := getattr(self, name)) is None else v for name, default in defaults.items()}

    def filled(self) -> Optimizer:
        """The same with every value said that the rule uses."""
        return replace(self, **self.values)


def check_engine(optimizer: Optimizer, engine: str) -> None:
    """Raise ConfigError if the rule cannot work with `engine.name` = `engine`."""
    rule = RULES[optimizer.name]
    if engine not in rule.engines:
        others = ", ".join(name for name, other in RULES.items() if engine in other.engines)
        raise ConfigError(
            f"optimizer.name={optimizer.name} does not work with engine.name={engine}: it needs {rule.needs}, and ZeRO "
            f"gives each member only a part of one long vector of all layers; use engine.name=replicated, or one of "
            f"the optimizers that update each element by itself: {others}"
        )
