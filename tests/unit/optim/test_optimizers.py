from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shoal.engines import optimizer_state
from shoal.errors import ConfigError
from shoal.job import Optimizer
from shoal.optim import averaging
from shoal.optim.optimizers import hidden_weights, make_optimizer, state_names

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def test_only_matrices_are_decayed() -> None:
    made = make_optimizer(Optimizer(weight_decay=0.3), model().named_parameters(), CPU)
    decayed, plain = made.param_groups
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0.0
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in plain["params"]} == {1}


def test_frozen_parameters_are_left_out() -> None:
    net = model()
    net[0].requires_grad_(False)
    made = make_optimizer(Optimizer(), net.named_parameters(), CPU)
    held = {id(p) for group in made.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters() if p.requires_grad}


def weights(net: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Decayed and not."""
    return [
        {"params": [p for p in net.parameters() if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in net.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


PLAIN = {"fused": False, "foreach": False}
LIBRARY: list[tuple[Optimizer, Callable[[nn.Module], list[torch.optim.Optimizer]]]] = [
    (Optimizer(lr=0.01), lambda n: [torch.optim.AdamW(weights(n, 0.1), lr=0.01, betas=(0.9, 0.95), **PLAIN)]),
    (Optimizer(name="adam", weight_decay=0.2), lambda n: [torch.optim.Adam(weights(n, 0.2), lr=1e-3, **PLAIN)]),
    (Optimizer(name="sgd"), lambda n: [torch.optim.SGD(weights(n, 0.0), lr=1e-3, momentum=0.9, **PLAIN)]),
    (
        Optimizer(name="sgd", nesterov=True, weight_decay=0.3),
        lambda n: [torch.optim.SGD(weights(n, 0.3), lr=1e-3, momentum=0.9, nesterov=True, **PLAIN)],
    ),
    (Optimizer(name="sgd", momentum=0.0), lambda n: [torch.optim.SGD(weights(n, 0.0), lr=1e-3, **PLAIN)]),
    (
        Optimizer(name="rmsprop", momentum=0.5),
        lambda n: [torch.optim.RMSprop(weights(n, 0.0), lr=1e-3, momentum=0.5, foreach=False)],
    ),
    (Optimizer(name="rmsprop"), lambda n: [torch.optim.RMSprop(weights(n, 0.0), lr=1e-3, foreach=False)]),
    (
        Optimizer(name="adagrad", weight_decay=0.3),
        lambda n: [torch.optim.Adagrad(weights(n, 0.3), lr=1e-3, **PLAIN)],
    ),
    (Optimizer(name="lion"), lambda n: [pytorch_optimizer.Lion(weights(n, 0.3), lr=1e-3, foreach=False)]),
    (
        Optimizer(name="lars", nesterov=True),
        lambda n: [pytorch_optimizer.LARS(weights(n, 1e-4), lr=1e-3, nesterov=True, foreach=False)],
    ),
    (
        Optimizer(name="muon"),
        lambda n: [
            torch.optim.Muon([n[0].weight], lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([n[2].weight], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1),
            torch.optim.AdamW([p for p in n.parameters() if p.dim() < 2], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0),
        ],
    ),
]
each = pytest.mark.parametrize(("spec", "library"), LIBRARY, ids=lambda v: v.name if isinstance(v, Optimizer) else "")


def step(net: nn.Module, seed: int, *optimizers: torch.optim.Optimizer) -> None:
    torch.manual_seed(seed)
    net(torch.randn(4, 5)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    net.zero_grad()


def same(ours: nn.Module, theirs: nn.Module) -> None:
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@each
def test_twenty_steps_are_the_librarys(spec: Optimizer, library: Callable[..., list[torch.optim.Optimizer]]) -> None:
    ours, theirs = model(), model()
    made = make_optimizer(spec, ours.named_parameters(), CPU, hidden_weights(ours))
    reference = library(theirs)
    for seed in range(20):
        step(ours, seed, made)
        step(theirs, seed, *reference)
    same(ours, theirs)
    assert not torch.equal(ours[0].weight, model()[0].weight)


def test_lamb_is_that_of_the_paper() -> None:
    """Algorithm 2 of arXiv:1904.00962, version 3: phi(z) = min(z, 10); no ratio and no decay for biases and norms."""
    spec = Optimizer(name="lamb", lr=0.02, weight_decay=0.3)
    ours, theirs = model(), model()
    made = make_optimizer(spec, ours.named_parameters(), CPU)
    kept = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in theirs.parameters()}
    for seed in range(20):
        step(ours, seed, made)
        torch.manual_seed(seed)
        theirs(torch.randn(4, 5)).square().mean().backward()
        with torch.no_grad():
            for p, (m, v) in kept.items():
                assert p.grad is not None
                m.mul_(0.9).add_(0.1 * p.grad)
                v.mul_(0.999).add_(0.001 * p.grad.square())
                update = m / (v.sqrt() + 1e-6)
                if p.dim() > 1:
                    update += 0.3 * p
                    update *= p.norm().clamp(max=10) / update.norm()
                p -= 0.02 * update
        theirs.zero_grad()
    same(ours, theirs)


def test_muon_is_for_the_matrices_between_embedding_and_output() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.Conv1d(1, 1, 1), nn.Linear(6, 5, bias=False))
    assert hidden_weights(net) == {net[1].weight}
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    tied[2].weight = tied[0].weight
    assert hidden_weights(tied) == {tied[1].weight}
    made = make_optimizer(Optimizer(name="muon"), net.named_parameters(), CPU, hidden_weights(net))
    assert [g["rule"] for g in made.param_groups] == ["muon", "adamw", "adamw"]
    with pytest.raises(ConfigError, match=r"none that is trainable.*use optimizer\.name=adamw"):
        make_optimizer(Optimizer(name="muon"), tied[2].named_parameters(), CPU, hidden_weights(tied[2]))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ConfigError, match=r"optimizer\.name=lion needs .*pip install 'shoal\[optim\]'"):
        make_optimizer(Optimizer(name="lion"), model().named_parameters(), CPU)


ALL = [*(spec for spec, _ in LIBRARY), Optimizer(name="lamb"), Optimizer(ema=0.9), Optimizer(name="muon", ema=0.9)]


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.name)
def test_state_names_are_the_librarys(spec: Optimizer) -> None:
    net = model()
    made = make_optimizer(spec, net.named_parameters(), CPU, hidden_weights(net))
    assert not made.state, "nothing before the first step"
    step(net, 0, made)
    shaped = {k for p in net.parameters() for k, v in made.state[p].items() if v is not None and v.shape == p.shape}
    assert shaped == set(state_names(spec))


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.name)
def test_training_goes_on_from_vectors_and_the_number_of_steps(spec: Optimizer) -> None:
    ours, moved = model(), model()
    made = make_optimizer(spec, ours.named_parameters(), CPU, hidden_weights(ours))
    for seed in range(5):
        step(ours, seed, made)
    other = make_optimizer(spec, moved.named_parameters(), CPU, hidden_weights(moved))
    optimizer_state.prepare(other, spec, list(moved.parameters()), 5)
    with torch.no_grad():
        for a, b in zip(moved.parameters(), ours.parameters(), strict=True):
            a.copy_(b)
            assert {k for k in other.state[a] if k != "step"} <= set(state_names(spec))
            for key in state_names(spec):
                old, new = optimizer_state.vector(made, b, key), optimizer_state.vector(other, a, key)
                assert (old is None) == (new is None)
                if old is not None and new is not None:
                    new.copy_(old)
    for seed in range(5, 8):
        step(ours, seed, made)
        step(moved, seed, other)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), moved.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_average_is_torchs(name: Literal["adamw", "sgd"]) -> None:
    net = model()
    theirs = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    made = make_optimizer(Optimizer(name=name, ema=0.7), net.named_parameters(), CPU)
    for seed in range(8):
        torch.manual_seed(seed)
        net(torch.randn(4, 5)).square().mean().backward()
        made.step()
        made.zero_grad()
        theirs.update_parameters(net)
    before = [p.detach().clone() for p in net.parameters()]
    averaging.swap(made, list(net.parameters()))
    for ours, right in zip(net.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(ours, right)
    averaging.swap(made, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        make_optimizer(Optimizer(), model().requires_grad_(False).named_parameters(), CPU)
