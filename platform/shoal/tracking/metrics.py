"""What operators see of every run in Prometheus: one table of names. Ray exports them with the prefix `ray_`.

Pure: `coordinator.panel` fills them in, `tracking.dashboard` draws them, docs/operations.md explains them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TAGS = ("run", "job_name")
"""On every metric: the run's id and the job's name. Prometheus keeps `job` for the target that it scrapes."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One name."""

    name: str
    kind: Literal["gauge", "counter"]
    """A counter only grows, and begins anew when the coordinator's process does, as Prometheus expects it."""
    help: str
    tags: tuple[str, ...] = ()
    """Besides `TAGS`."""

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")


METRICS = (
    Metric("shoal_phase", "gauge", "1 for the phase that the run is in, 0 for the others", ("phase",)),
    Metric("shoal_step", "gauge", "Last committed step"),
    Metric("shoal_expected_steps", "gauge", "The run's last step, as far as it can be foreseen"),
    Metric("shoal_steps", "counter", "Steps committed"),
    Metric("shoal_samples", "counter", "Samples of committed steps"),
    Metric("shoal_loss", "gauge", "Training loss of the last committed step"),
    Metric("shoal_step_seconds", "gauge", "Length of the last committed step"),
    Metric(
        "shoal_step_part_seconds",
        "gauge",
        "Parts of the last committed step: data_wait, compute, communicate, update",
        ("part",),
    ),
    Metric("shoal_workers", "gauge", "Workers by state: starting, ready, member, leaving, spare", ("state",)),
    Metric("shoal_workers_wanted", "gauge", "How many workers the run may have at least and at most", ("bound",)),
    Metric("shoal_view", "gauge", "Number of the view"),
    Metric("shoal_changes", "counter", "Changes of the members: join, leave, loss, hang", ("what",)),
    Metric(
        "shoal_change_seconds",
        "counter",
        "Seconds that changes took, by part: detect, regroup, state, resume, and idle, in which the others did no step",
        ("what", "part"),
    ),
    Metric("shoal_steps_redone", "counter", "Steps that were computed again after losses"),
    Metric("shoal_losses", "counter", "Losses by cause", ("cause",)),
    Metric("shoal_uncommitted_steps", "gauge", "Steps done that one more loss would have computed again"),
    Metric("shoal_commit_age_seconds", "gauge", "Since a step was last committed"),
    Metric(
        "shoal_snapshot_age_seconds",
        "gauge",
        "Since the copies in peers' memory last became newer; sharded engines only",
    ),
    Metric("shoal_checkpoint_age_seconds", "gauge", "Since the last durable checkpoint, or the run's beginning"),
    Metric("shoal_checkpoints", "counter", "Durable checkpoints, and attempts that failed", ("result",)),
    Metric("shoal_record_behind", "gauge", "1 while MLflow does not take the record or the ledger cannot be written"),
    Metric("shoal_joules", "counter", "Energy that workers used, by phase", ("phase",)),
    Metric(
        "shoal_dollars",
        "counter",
        "Money that workers cost, by phase; only where there is a price",
        ("phase",),
    ),
)
