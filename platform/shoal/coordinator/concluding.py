"""How a run ends: its status, the last words in the record, and what is handed to whoever waits for the outcome."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Literal

from shoal.coordinator.scene import Scene
from shoal.membership.decisions import Conclude

RECORD_DEADLINE_S = 60.0
"""How long the end of a run waits for MLflow, if it was up before; on a busy machine making a new store takes long."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the run ended."""

    status: Literal["finished", "failed", "stopped"]
    step: int
    reason: str
    checkpoint: str | None
    metrics: dict[str, float]
    unsent: int
    """Ledger entries that MLflow could not be given."""


async def conclude(scene: Scene, decision: Conclude) -> Ended:
    """The record's last entry, and the outcome."""
    step, failed, latest = scene.book.committed, scene.durable.failed, scene.durable.latest
    status, reason = decision.status, decision.reason
    if status != "failed" and failed is not None:
        status = "failed"
        reason = f"the checkpoint of the last step {failed[0]} could not be written: {failed[1]}"
    spent = scene.spending.conclude(scene.book, time.monotonic(), time.time())
    unsent = await asyncio.to_thread(scene.book.close, status, reason, spent, RECORD_DEADLINE_S)
    return Ended(status, step, reason, latest.uri if latest else None, scene.book.metrics(step), unsent)
