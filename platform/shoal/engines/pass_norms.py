"""Squared norms of the gradients of single passes, taken while they are made: what the noise scale is measured with.

A hook on each parameter sees the gradient of one backward pass before it is added to others, reduced or divided, in
every engine: no further pass, and no memory but a number per parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shoal.optim.noise import Parts


class PassNorms:
    """Those of one member in one step."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._norms: list[torch.Tensor] = []
        self._squares: list[torch.Tensor] = []
        self._inverse = 0.0
        for parameter in parameters:
            parameter.register_hook(self._saw)

    def _saw(self, gradient: torch.Tensor | None) -> None:
        if gradient is not None:  # a parameter that the pass did not use
            self._norms.append(torch.linalg.vector_norm(gradient))

    def end_pass(self, samples: int, scale: float) -> None:
        """A backward pass over `samples` samples is over, whose gradient counted `scale` times; 0: it was padding."""
        norms, self._norms = self._norms, []
        if scale and norms:
            self._squares.append(torch.linalg.vector_norm(torch.stack(norms)).double().square() / scale**2)
            self._inverse += 1.0 / samples

    def take(self) -> Parts:
        """Those of the passes since the last call. Waits for the device."""
        squares, inverse = self._squares, self._inverse
        self.forget()
        return Parts(len(squares), inverse, sum(torch.stack(squares).tolist())) if squares else Parts()

    def forget(self) -> None:
        """Drop those of a step that will not be finished."""
        self._norms, self._squares, self._inverse = [], [], 0.0
