"""Running jobs in tests, and reading what they left."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import shoal
from shoal.coordinator.status import Outcome, RunStatus
from shoal.job.store import load_job
from shoal.launch.api import RunOptions, run_job
from shoal.launch.verify import Verified, VerifyOptions, verify
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import effective, read
from tests.support.sabotage import Digits
from tests.support.shared_cluster import SHARED


@dataclass
class Listener:
    """A display that remembers."""

    events: list[tuple[str, str]] = field(default_factory=list)
    last: RunStatus | None = None
    interrupt_at: int | None = None
    """Press Ctrl-C when this many steps are done."""

    def started(self, info: Mapping[str, Any]) -> None:
        pass

    def status(self, status: RunStatus) -> None:
        self.last = status
        if self.interrupt_at is not None and status.step >= self.interrupt_at:
            self.interrupt_at = None
            os.kill(os.getpid(), signal.SIGINT)

    def event(self, kind: str, text: str) -> None:
        self.events.append((kind, text))

    def finished(self, outcome: Outcome) -> None:
        pass

    def said(self, kind: str) -> str:
        return "\n".join(text for k, text in self.events if k == kind)


def digits(task: shoal.Task | None = None, **changes: Any) -> shoal.Job:
    """A job of a few seconds on the digits; `changes` replace its parts."""
    parts: dict[str, Any] = {
        "name": "digits",
        "task": task or Digits(),
        "data": shoal.Data(train="builtin:digits", cpus=0.5),
        "batch": shoal.Batch(size=32, virtual_shards=8),
        "budget": shoal.Budget(steps=12),
        "optimizer": shoal.Optimizer(lr=1e-2),
        "workers": shoal.Workers(min=2, max=2, cpus=1.0),
        "evaluation": shoal.Evaluation(every=None, samples=64),
        "checkpoints": shoal.Checkpoints(every=4, export=False),
    }
    return shoal.Job(**{**parts, **changes})


def run(
    job: shoal.Job,
    runs: Path,
    *,
    interrupt_at: int | None = None,
    listener: Listener | None = None,
    warm: int = 0,
    **options: Any,
) -> tuple[Outcome, Listener]:
    """Run `job` with its folder under `runs`; press Ctrl-C after step `interrupt_at`. Its workers are warm ones of the
    shared pool, of which `warm` at least are there; `pool=None`: processes of its own."""
    listener = listener or Listener(interrupt_at=interrupt_at)
    if "pool" not in options:
        options["pool"] = SHARED.pool_for(job, warm)
    return run_job(job, options=RunOptions(runs_dir=runs, **options), display=listener), listener


def computed_again(folder: RunFolder, workers: int) -> Verified:
    """The run computed again on so many workers, warm ones if there are."""
    pool = SHARED.pool_for(load_job(folder), workers)
    return verify(folder, VerifyOptions(workers=workers, pool=pool), Listener())


def ledger(outcome: Outcome) -> list[dict[str, Any]]:
    """All entries of the run's ledger, as written."""
    return [dict(e) for e in read(RunFolder(Path(outcome.folder)).ledger)[0]]


def commits(outcome: Outcome) -> list[dict[str, Any]]:
    """The commits that count."""
    return [dict(e) for e in effective(ledger(outcome)) if e["kind"] == "commit"]


def losses(outcome: Outcome) -> list[float]:
    """Training loss of every step, in order; asserts that every step and sample is there exactly once."""
    found = commits(outcome)
    assert [c["step"] for c in found] == list(range(1, len(found) + 1))
    size = found[0]["samples"][1]
    assert [c["samples"] for c in found] == [[i * size, (i + 1) * size] for i in range(len(found))]
    return [c["loss"] for c in found]
