"""Several torch optimizers as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Combined(torch.optim.Optimizer):
    """Its groups and its state are those of the parts: what is changed here is changed there.

    Source of the combination of Muon and AdamW: the example in the documentation of `torch.optim.Muon`.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        self.param_groups = [group for part in parts for group in part.param_groups]
        # Some make their state when they are made; here as elsewhere there is none before the first step.
        self.state.clear()
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of each part. `closure`, which would compute the loss anew, is not taken."""
        assert closure is None
        for part in self._parts:
            part.step()
