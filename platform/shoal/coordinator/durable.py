"""Durable checkpoints, the coordinator's side: from the members' parts to a published manifest, kept by a policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from shoal.coordinator.plan import RunPlan
from shoal.errors import CheckpointError
from shoal.membership.messages import ShardWritten
from shoal.state.manifest import FileEntry, Manifest, parameter_table
from shoal.state.store import CheckpointInfo, CheckpointStore


class Durable:
    """Publishes checkpoints, one at a time."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._store = CheckpointStore(plan.checkpoint_uri)
        self._one_at_a_time = asyncio.Lock()
        self.latest: CheckpointInfo | None = plan.start_from

    async def publish(
        self, step: int, parts: Sequence[ShardWritten], model: dict[str, Any], metrics: dict[str, float]
    ) -> dict[str, Any]:
        """Make the members' parts of step `step` a checkpoint; returns its ledger entry (with `error` if it failed)."""
        begun = time.time()
        entry: dict[str, Any] = {"kind": "checkpoint", "step": step, "seconds": max(p.seconds for p in parts)}
        errors = [p.error for p in parts if p.error]
        if errors:
            return {**entry, "time": begun, "error": errors[0]}
        manifest = self._manifest(step, parts, model, metrics, begun)
        try:
            async with self._one_at_a_time:
                uri = await asyncio.to_thread(self._store.publish, manifest)
        except CheckpointError as error:
            return {**entry, "time": begun, "error": str(error)}
        self.latest = CheckpointInfo(step, uri, metrics, manifest.time)
        pruned = await asyncio.to_thread(self._prune)
        return {**entry, **pruned, "time": time.time(), "uri": uri, "bytes": sum(f.bytes for f in manifest.files)}

    def _prune(self) -> dict[str, str]:
        """Delete what the policy does not keep; a place that refuses that has nevertheless got its checkpoint."""
        try:
            self._store.prune(self._plan.job.checkpoints)
        except CheckpointError as error:
            return {"warning": f"older checkpoints could not be deleted: {error}"}
        return {}

    def _manifest(
        self, step: int, parts: Sequence[ShardWritten], model: dict[str, Any], metrics: dict[str, float], now: float
    ) -> Manifest:
        plan = self._plan
        return Manifest(
            step=step,
            job_name=plan.job.name,
            job_digest=plan.job_digest,
            model_digest=model["digest"],
            parameters=parameter_table(model["parameters"]),
            scalars=parts[0].scalars,
            cursor=plan.cursor(step).to_json(),
            engine=plan.job.engine.name,
            world_size=len(parts),
            files=tuple(FileEntry.from_dict(f) for p in parts for f in p.files),
            metrics=metrics,
            time=now,
        )
