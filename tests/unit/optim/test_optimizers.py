from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from shoal.errors import ConfigError
from shoal.job import Optimizer
from shoal.optim import averaging
from shoal.optim.optimizers import make_optimizer, state_names

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


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        (Optimizer(lr=0.01), lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.9, 0.95), fused=False, foreach=False)),
        (
            Optimizer(name="sgd", lr=0.01),
            lambda g: torch.optim.SGD(g, lr=0.01, momentum=0.9, fused=False, foreach=False),
        ),
    ],
)
def test_fused_kernels_do_the_same_arithmetic(spec: Optimizer, plain: object) -> None:
    ours, theirs = model(), model()
    made = make_optimizer(spec, ours.named_parameters(), CPU)
    weights = [p for p in theirs.parameters() if p.dim() >= 2]
    rest = [p for p in theirs.parameters() if p.dim() < 2]
    groups = [{"params": weights, "weight_decay": spec.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    reference = plain(groups)  # type: ignore[operator]
    for seed in range(20):
        for net, optimizer in ((ours, made), (theirs, reference)):
            torch.manual_seed(seed)
            net(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "spec",
    [Optimizer(), Optimizer(name="sgd"), Optimizer(name="sgd", momentum=0.0), Optimizer(ema=0.9)],
)
def test_state_names_are_torchs(spec: Optimizer) -> None:
    net = model()
    made = make_optimizer(spec, net.named_parameters(), CPU)
    net(torch.randn(4, 5)).sum().backward()
    made.step()
    shaped = {k for p in net.parameters() for k, v in made.state[p].items() if v is not None and v.shape == p.shape}
    assert shaped == set(state_names(spec))


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
