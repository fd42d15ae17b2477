"""What operators see of a run: metrics for Prometheus through Ray, and log lines. It only reads what others know.

Entries of the ledger are counted as they are written; numbers go to Ray once a second. Nothing waits for either.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Count
from collections.abc import Mapping
from typing import Any, get_args

from ray.util.metrics import Counter, Gauge

from shoal import logs
from shoal.coordinator import control
from shoal.coordinator.scene import Scene
from shoal.coordinator.status import State
from shoal.membership.phases import Phase
from shoal.tracking.changes import PARTS
from shoal.tracking.metrics import METRICS, TAGS

STEP_PARTS = ("data_wait", "compute", "communicate", "update")
_LEVELS = {"warning": logging.WARNING, "loss": logging.WARNING, "hang": logging.WARNING}
_log = logging.getLogger(__name__)

Key = tuple[str, tuple[tuple[str, str], ...]]


class Panel:
    """The metrics and log lines of one run."""

    def __init__(self, scene: Scene) -> None:
        """Hears the scene's book from now on."""
        self._scene = scene
        self._tags = {"run": scene.plan.run_id, "job_name": scene.plan.job.name}
        made = {kind: [m for m in METRICS if m.kind == kind] for kind in ("gauge", "counter")}
        self._gauges = {m.name: Gauge(m.name, m.help, (*TAGS, *m.tags)) for m in made["gauge"]}
        self._counters = {m.name: Counter(m.name, m.help, (*TAGS, *m.tags)) for m in made["counter"]}
        self._counted: Count[Key] = Count()
        """Not yet told to Ray."""
        self._booked: dict[Key, float] = {}
        """Joules and dollars by phase, as counted last."""
        self._committed_at = self._saved_at = self._stable_at = time.monotonic()
        self._stable: tuple[int, int] | None = None
        scene.book.on_entry, scene.book.on_news = self.count, self.log

    # What is written -------------------------------------------------------------------------------------------------

    def count(self, entry: Mapping[str, Any]) -> None:
        """One entry of the ledger."""
        kind = entry["kind"]
        if kind == "commit":
            first, stop = entry["samples"]
            self._committed_at = time.monotonic()
            self._add("shoal_steps")
            self._add("shoal_samples", stop - first)
        elif kind == "change":
            self._add("shoal_changes", what=entry["what"])
            self._add("shoal_steps_redone", entry["steps_redone"])
            for part in (*PARTS, "idle"):
                self._add("shoal_change_seconds", entry[f"{part}_s"], what=entry["what"], part=part)
        elif kind == "loss":
            self._add("shoal_losses", cause=entry["cause"])
        elif kind == "checkpoint":
            failed = "error" in entry
            self._saved_at = self._saved_at if failed else time.monotonic()
            self._add("shoal_checkpoints", result="failed" if failed else "durable")
        elif kind == "cost":
            for unit in ("joules", "dollars"):
                for phase, amount in entry.get(unit, {}).items():
                    self._grow(f"shoal_{unit}", amount, phase=phase)

    def log(self, kind: str, text: str) -> None:
        """One line of news."""
        running = self._scene.running
        logs.note(view=running.number if running is not None else None, step=self._scene.book.committed)
        _log.log(_LEVELS.get(kind, logging.INFO), text, extra=logs.extra(event=kind))

    def _add(self, name: str, amount: float = 1, **tags: str) -> None:
        if amount > 0:
            self._counted[name, tuple(tags.items())] += amount  # type: ignore[assignment]

    def _grow(self, name: str, total: float, **tags: str) -> None:
        """What is told as a total becomes what was added to it."""
        key = name, tuple(tags.items())
        self._add(name, total - self._booked.get(key, 0.0), **tags)
        self._booked[key] = max(total, self._booked.get(key, 0.0))

    def tell(self) -> None:
        """What was counted goes to Ray."""
        for (name, tags), amount in self._counted.items():
            self._counters[name].inc(float(amount), {**self._tags, **dict(tags)})
        self._counted.clear()

    # What is shown ---------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Once a second, and at the end: how the run stands."""
        scene, now = self._scene, time.monotonic()
        book, running, phase = scene.book, scene.running, control.status(scene).phase
        self.tell()
        for one in (*control.SHOWN.values(), "stopping", "done"):
            self._set("shoal_phase", (phase if scene.phase is not Phase.DONE else "done") == one, phase=one)
        ranks = control.ranks_of(scene)
        states = Count(control.state_of(scene, h, ranks.get(h.member)) for h in scene.crew.hands.values())
        for state in get_args(State):
            self._set("shoal_workers", states[state], state=state)
        self._set("shoal_workers_wanted", scene.low, bound="min")
        self._set("shoal_workers_wanted", scene.high, bound="max")
        self._set("shoal_view", scene.number)
        self._set("shoal_step", book.committed)
        self._set("shoal_expected_steps", scene.course.expected)
        self._set("shoal_commit_age_seconds", now - self._committed_at)
        self._set("shoal_checkpoint_age_seconds", now - self._saved_at)
        self._set("shoal_record_behind", book.is_behind)
        self._set("shoal_uncommitted_steps", running.tally.reported - running.tally.committed if running else 0)
        if book.last is not None:
            self._set("shoal_loss", book.last.loss)
            self._set("shoal_step_seconds", book.last.step_s)
            for part in STEP_PARTS:
                self._set("shoal_step_part_seconds", getattr(book.last, f"{part}_s"), part=part)
        if running is not None and running.sharded:
            stable = running.number, running.tally.stable
            if stable != self._stable:
                self._stable, self._stable_at = stable, now
            self._set("shoal_snapshot_age_seconds", now - self._stable_at)

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[name].set(float(value), {**self._tags, **tags})
