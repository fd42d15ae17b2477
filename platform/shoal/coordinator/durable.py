"""Durable checkpoints, the coordinator's side: from the members' parts to a published manifest, kept by a policy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from shoal.coordinator.book import Book
from shoal.coordinator.plan import RunPlan, cursor_of
from shoal.data.order import Cursor
from shoal.errors import CheckpointError
from shoal.membership.messages import ShardWritten
from shoal.positions import Positions
from shoal.state.manifest import FileEntry, Manifest, parameter_table
from shoal.state.store import CheckpointInfo, CheckpointStore


class Durable:
    """Publishes checkpoints beside the training, one at a time and in order."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._store = CheckpointStore(plan.checkpoint_uri)
        self._one_at_a_time = asyncio.Lock()
        self._publishing: set[asyncio.Task[None]] = set()
        self.latest: CheckpointInfo | None = plan.start_from
        self.failed: tuple[int, str] | None = None
        """Step of the last checkpoint, and why it could not be made; None: it could."""
        self.model: dict[str, Any] = {}
        """Facts of the run's model, from the first worker."""

    @property
    def reached(self) -> int | None:
        """The last step of which there is a checkpoint, or of which making one was tried."""
        latest = self.latest.step if self.latest else None
        return latest if self.failed is None else max(self.failed[0], latest or 0)

    def look(self) -> None:
        """Find what an earlier life of the coordinator has published."""
        self.latest = self._store.latest() or self.latest

    def submit(self, step: int, parts: Sequence[ShardWritten], book: Book, positions: Positions) -> None:
        """Begin to publish the members' parts of step `step`; what becomes of it goes to the book. `positions`: what
        the steps up to it have read."""

        async def publish() -> None:
            cursor = cursor_of(self._plan.job, self._plan.train, step, positions)
            entry = await self._publish(step, parts, book.metrics(step), cursor)
            self.failed = (step, entry["error"]) if "error" in entry else None
            book.checkpoint(entry)

        if self.latest is not None and step <= self.latest.step:
            return  # a view that began after it was owed this one, too
        task = asyncio.ensure_future(publish())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def all_published(self) -> None:
        """Wait for everything that was submitted."""
        await asyncio.gather(*self._publishing)

    async def _publish(
        self, step: int, parts: Sequence[ShardWritten], metrics: dict[str, float], cursor: Cursor
    ) -> dict[str, Any]:
        """Make the members' parts of step `step` a checkpoint; returns its ledger entry (with `error` if it failed)."""
        begun = time.time()
        entry: dict[str, Any] = {"kind": "checkpoint", "step": step, "seconds": max(p.seconds for p in parts)}
        errors = [p.error for p in parts if p.error]
        if errors:
            return {**entry, "time": begun, "error": errors[0]}
        manifest = self._manifest(step, parts, metrics, cursor, begun)
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
        self, step: int, parts: Sequence[ShardWritten], metrics: dict[str, float], cursor: Cursor, now: float
    ) -> Manifest:
        plan, model = self._plan, self.model
        return Manifest(
            step=step,
            job_name=plan.job.name,
            job_digest=plan.job_digest,
            model_digest=model["digest"],
            parameters=parameter_table(model["parameters"]),
            scalars=parts[0].scalars,
            cursor=cursor.to_json(),
            engine=plan.job.engine.name,
            world_size=len(parts),
            files=tuple(FileEntry.from_dict(f) for p in parts for f in p.files),
            metrics=metrics,
            time=now,
        )
