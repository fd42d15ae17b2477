"""What the coordinator is told about a run when it is born."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shoal.data.order import Cursor
from shoal.data.training import order_digest
from shoal.job import Job
from shoal.job.steps import positions_of
from shoal.membership.course import Course
from shoal.membership.leasing import Plan
from shoal.positions import Positions
from shoal.tasks.base import Task

if TYPE_CHECKING:
    from shoal.data.catalog import Catalog
    from shoal.data.mixture import Mixture
    from shoal.data.training import TrainingData
    from shoal.logs import Style
    from shoal.optim.range_test import Divergence
    from shoal.state.store import CheckpointInfo
    from shoal.tracking.prices import Tariff
    from shoal.tracking.settings import RecordSettings


class TaskElsewhere(Task):
    """Stands for the task in processes that never run it, so that they need not import what it needs."""

    def __init__(self, task: Task) -> None:
        self.columns = tuple(task.columns)
        self.tokens_per_sample = task.tokens_per_sample
        self._tells_samples = task.tells_samples()

    def tells_samples(self) -> bool:
        """What the task itself says."""
        return self._tells_samples


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPlan:
    """One run, ready to go. Every field survives pickling without torch."""

    run_id: str
    folder: Path
    job: Job
    """With a TaskElsewhere in place of the task, and without the user's transforms, which the catalogs carry."""
    job_blob: bytes
    """The whole job, pickled by value, for the workers."""
    job_digest: str
    train: TrainingData
    validation: Catalog | None
    total_steps: int
    checkpoint_uri: str
    export_uri: str
    start_from: CheckpointInfo | None
    """The checkpoint to begin with."""
    continues: bool
    """True: the ledger holds earlier steps of this same run."""
    record: RecordSettings | None
    """None: the run is not recorded in MLflow."""
    node_id: str
    """The node whose disk holds the run folder."""
    tariff: Tariff
    """What workers cost."""
    driver_silence_s: float
    """A run whose submitter has not asked for its status for so long ends cleanly."""
    if_detached: Literal["stop", "continue"] = "stop"
    """`continue`: it goes on all the same."""
    until_step: int | None = None
    """The run stops here, with a checkpoint, although its budget goes further."""
    replay: Path | None = None
    """A ledger; what it says of the course of the steps stands."""
    spans: tuple[tuple[int, int], ...] = ()
    """As in `Positions`: what the steps up to `start_from` read, where the job alone does not say it."""

    hosted_by: str | None = None
    """Name of the actor that hosts the coordinator, where a pool keeps it warm; None: one that is named after the run.
    """
    pool: str | None = None
    """The pool that lends the workers; None: the cluster gives them."""
    log_format: Style = "text"
    """How coordinator and workers write their log lines."""
    divergence: Divergence | None = None
    """The run stops, in the same way, when its loss does this."""

    launch: str = field(default_factory=lambda: f"{time.time_ns():x}")
    """Tells the workers of this launch from those of an earlier one of the same run."""
    token: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """What the workers of this launch show each other. It is written nowhere."""

    @property
    def coordinator(self) -> str:
        """The coordinator's name in Ray's namespace `shoal`."""
        return self.hosted_by or f"shoal-{self.run_id}"

    @property
    def key(self) -> str:
        """Tells this launch of the run from everything else in the cluster."""
        return f"shoal-{self.run_id}-{self.launch}"

    @property
    def sharded(self) -> bool:
        """Whether each member holds a part of the state only."""
        return self.job.engine.name != "replicated"

    def stretch_ended(self, step: int) -> str | None:
        """Why the run ends after `step`, before its budget does, if only a stretch of it was wanted."""
        return "the stretch ends here" if self.until_step is not None and step >= self.until_step else None

    @property
    def validation_samples(self) -> int:
        return min(self.job.evaluation.samples, self.validation.samples) if self.validation else 0

    @property
    def positions(self) -> Positions:
        """Which positions of the endless stream each step reads, as far as that is known before the run."""
        return Positions(self.spans, self.total_steps) if self.spans else positions_of(self.job, self.total_steps)

    @property
    def mixture(self) -> Mixture | None:
        """Which source each sample is of; None: there is one."""
        job = self.job
        return self.train.mixture(job.data, seed=job.seed, block=job.batch.size, total=self.positions.total)

    def leasing(self, course: Course) -> Plan:
        """What leasing needs to know."""
        job = self.job
        return Plan(
            course=course,
            virtual_shards=job.batch.virtual_shards,
            evaluate_every=job.evaluation.every,
            checkpoint_every=job.checkpoints.every,
            # A stretch that is only computed again ends with a checkpoint, which shows what it came to.
            export=job.checkpoints.export and self.until_step is None,
            can_evaluate=self.validation is not None and self.until_step is None,
            snapshot=self.sharded,
        )


def cursor_of(job: Job, train: TrainingData, step: int, positions: Positions) -> Cursor:
    """Where the data order of `job` on `train` stands after `step`, if the steps read `positions`."""
    return Cursor(
        position=positions.before(step),
        seed=job.seed,
        samples=train.samples,
        digest=train.digest,
        shuffle=job.data.shuffle,
        window=job.data.window,
        options=order_digest(job.data, block=job.batch.size, total=positions.total),
    )
