"""A run that waits for its test: a task that takes its time for as long as a file is there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.sabotage import Digits

PACE_S = 0.05
"""What each virtual shard takes meanwhile."""


@dataclass(frozen=True)
class Paced(Digits):
    """`Digits`, braked while `brake` exists; the numbers are the same."""

    brake: str = ""

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        import torch

        if torch.is_grad_enabled() and self.brake and Path(self.brake).exists():
            time.sleep(PACE_S)
        return super().loss(model, batch)
