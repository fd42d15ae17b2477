"""What this process's kernels compute, as one number: processors, libraries and settings that differ show in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.nn import functional

SHAPES = ((3, 21, 21), (37, 129, 53), (128, 192, 320))
"""(rows, inputs, outputs) of the products: with tails and without."""


def arithmetic(device: torch.device) -> str:
    """16 hex digits over the bits of some products, sums and functions on `device`, forward and backward.

    In `exact` numerics all members of a run must agree on it. Equal numbers do not prove that every kernel agrees, but
    what usually differs does: the instruction set, the version of a library, the number of threads, the kind of GPU.
    """
    digest = hashlib.sha256()
    for result in _results(device):
        digest.update(result.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _results(device: torch.device) -> Iterator[torch.Tensor]:
    for rows, inputs, outputs in SHAPES:
        x, w = (_numbers(n * inputs, device).view(n, inputs).requires_grad_() for n in (rows, outputs))
        hidden = functional.gelu(functional.linear(functional.layer_norm(x, (inputs,)), w))
        loss = (
            torch.logsumexp(hidden, -1).mean() + torch.softmax(hidden, -1).square().sum() + torch.tanh(x).exp().mean()
        )
        yield from (hidden, loss.reshape(1), *torch.autograd.grad(loss, (x, w)))
        with torch.autocast(device.type, torch.bfloat16):
            yield functional.linear(x, w)
    images, kernels = _numbers(2 * 3 * 9 * 9, device).view(2, 3, 9, 9), _numbers(5 * 3 * 9, device).view(5, 3, 3, 3)
    yield functional.conv2d(images, kernels, padding=1)


def _numbers(count: int, device: torch.device) -> torch.Tensor:
    """Numbers in [-1, 1) without a pattern, the same everywhere: made by integer arithmetic alone."""
    mixed = torch.arange(1, count + 1, dtype=torch.int64).mul_(2654435761).remainder_(1 << 20)
    return mixed.to(torch.float32).div_(1 << 19).sub_(1).to(device)
