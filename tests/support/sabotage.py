"""Scripted failures: a task that breaks at a chosen (rank, step), once, in the way that the test asks for."""

from __future__ import annotations

import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shoal


@dataclass(frozen=True)
class Digits(shoal.Task):
    """A small classifier of digits; one forward pass per virtual shard."""

    width: int = 16
    columns = ("image", "label")

    def build(self) -> Any:
        import torch

        return torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, self.width), torch.nn.Tanh(), torch.nn.Linear(self.width, 10)
        )

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"])

    def sample_losses(self, model: Any, batch: dict[str, Any]) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(model(batch["image"]), batch["label"], reduction="none")

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return {**means, "perplexity": math.exp(means["loss"])}


@dataclass(frozen=True)
class Changing(Digits):
    """Another model from the moment on at which `marker` exists: as where one node has other files than the rest."""

    marker: str = ""

    def build(self) -> Any:
        import torch

        model = super().build()
        return torch.nn.Sequential(*model, torch.nn.Linear(10, 10)) if Path(self.marker).exists() else model


@dataclass(frozen=True)
class Sabotage(Digits):
    """`Digits` that does `how` in the first virtual shard of step `step` on the member of rank `rank`.

    `how`: a signal's name (to its own process), `raise`, `nan`, `vector` (a loss that is no scalar). With `marker`, a
    file that does not exist yet, it happens once in all processes together; without, every time.
    """

    how: str = "raise"
    rank: int = 0
    step: int = 3
    shards: int = 4
    """Virtual shards that the member does in a step (its share of the job's)."""
    marker: str = ""
    once_there: str = ""
    """A file that must exist before it happens, such as the manifest of a checkpoint."""

    def build(self) -> Any:
        _CALLS[0] = 0  # a process may serve one run after another
        return super().build()

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        import torch

        loss = super().loss(model, batch)
        if torch.is_grad_enabled() and self._due():
            self._wait()
            if self.how.startswith("SIG"):
                os.kill(os.getpid(), getattr(signal, self.how))
            elif self.how == "raise":
                raise ZeroDivisionError("scripted: the user's code fails")
            return loss * float("nan") if self.how == "nan" else loss.expand(2)
        return loss

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while self.once_there and not Path(self.once_there).exists():
            assert time.monotonic() < deadline, f"{self.once_there} did not come"
            time.sleep(0.02)

    def _due(self) -> bool:
        import torch.distributed as dist

        # The count lives with the process, as the fault does: tasks are frozen values.
        calls = _CALLS[0] = _CALLS[0] + 1
        if calls != (self.step - 1) * self.shards + 1 or (dist.is_initialized() and dist.get_rank() != self.rank):
            return False
        if not self.marker:
            return True
        try:
            Path(self.marker).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


_CALLS = [0]
