"""The coordinator's book: every event once to the ledger, the latest numbers for whoever asks, news for the display."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from shoal.coordinator.plan import RunPlan
from shoal.job.steps import foreseen
from shoal.membership.commits import Commit
from shoal.membership.sizes import Decision
from shoal.optim.noise import Measured, NoiseScale
from shoal.redaction import redact
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import Entry, Ledger, effective, read
from shoal.tracking.owner import owner
from shoal.tracking.recorder import Recorder

RECENT = 20
"""Steps over which the speed is told."""


class Book:
    """One writer: the ledger is the truth, MLflow is fed from it by the recorder's thread."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._folder = RunFolder(plan.folder)
        self._recorder = Recorder(self._folder, plan.record) if plan.record is not None else None
        self._news: list[tuple[str, str]] = []
        self._warned_ledger = self._warned_record = False
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._noise = NoiseScale()
        self.last: Commit | None = None
        self.committed = plan.start_from.step if plan.start_from else 0
        """The last step that is part of the run for good."""
        self.evaluation: dict[str, float] = {}
        self.evaluated_at = 0
        self.evaluated_steps: set[int] = set()
        self.saved_steps: set[int] = set()
        self.on_entry: Callable[[Entry], None] = lambda entry: None
        """Hears every entry as it is written; for one passive observer."""
        self.on_news: Callable[[str, str], None] = lambda kind, text: None
        """The same for news."""

    def open(self, *, revived: bool) -> None:
        """Begin the record, or go on with it after a restart of the coordinator.

        Raises ConfigError if the ledger cannot be written, or another process holds it.
        """
        self._ledger = Ledger(self._folder.ledger)
        if revived:
            self.say("warning", "the coordinator was restarted; it asks the workers where they stand")
        else:
            self._folder.update(status="running", owner=owner(), started=time.time())
            self._begin()
        if self._recorder is not None:
            self._recorder.start()

    def _begin(self) -> None:
        plan = self._plan
        self.write(
            "start",
            run=plan.run_id,
            job_digest=plan.job_digest,
            samples=plan.train.samples,
            data_digest=plan.train.digest,
            positions=plan.positions.spans,
            total_steps=foreseen(plan.total_steps),
        )

    @property
    def path(self) -> Path:
        """The ledger's file."""
        return self._folder.ledger

    def remember(self, entries: Iterable[Entry]) -> None:
        """Take over from an earlier life of the coordinator what its ledger says."""
        entries = list(entries)
        for entry in entries:
            if entry["kind"] == "commit":
                self.committed = entry["step"]
                self.last = _commit_of(entry, self._plan.job.batch.virtual_shards)
                self._recent.append(entry["step_s"])
            elif entry["kind"] == "resume":
                self.committed = entry["from_step"]
            elif entry["kind"] == "evaluation":
                self.evaluation, self.evaluated_at = dict(entry["metrics"]), entry["step"]
                self.evaluated_steps.add(entry["step"])
            elif entry["kind"] == "checkpoint":
                self.saved_steps.add(entry["step"])
        self._recall_noise(entries)

    def close(self, status: str, reason: str, spent: Mapping[str, Any], deadline_s: float) -> int:
        """The last entry, with what was `spent`; returns how many entries MLflow could not be given by the deadline."""
        if status == "finished":  # of some budgets nobody knew it before
            self._folder.update(total_steps=self.committed)
        self.write("end", status=status, reason=reason, **spent)
        unsent = self._recorder.close(deadline_s) if self._recorder is not None else 0
        self._ledger.close()
        self._folder.update(status=status, reason=redact(reason), **spent)
        return unsent

    def write(self, kind: str, **values: Any) -> None:
        """Append one entry."""
        shown = {k: redact(v) if isinstance(v, str) else v for k, v in values.items()}
        self._append([{"kind": kind, "time": time.time(), **shown}])

    def commits(self, commits: list[Commit], used: Mapping[str, float]) -> None:
        """Append commits, in order; `used`: what the run has used by now, by unit."""
        if not commits:
            return
        self._append([{**self._entry(c), "used": {unit: round(n, 6) for unit, n in used.items()}} for c in commits])
        self._recent.extend(c.step_s for c in commits)
        self.last = commits[-1]
        self.committed = self.last.step

    def decided(self, decisions: Iterable[Decision]) -> None:
        """Append decisions about the size of the batch, before anybody acts on them."""
        for decision in decisions:
            self.write("batch", step=decision.step, size=decision.size, why=decision.why)

    def roll_back(self, step: int) -> None:
        """Steps beyond `step` are run again, although they were committed: only a durable checkpoint was left."""
        self.committed = step
        self._recall_noise(read(self.path)[0])

    @property
    def step_s(self) -> float | None:
        """Seconds that a step takes: the median of the recent ones."""
        return median(self._recent) if self._recent else None

    def evaluated(self, step: int, means: Mapping[str, float], seconds: float) -> None:
        """Append the result of an evaluation; names get the prefix `val/`. Each step's counts once."""
        if step == self.evaluated_at:
            return
        self.evaluation = {f"val/{name}": value for name, value in means.items()}
        self.evaluated_at = step
        self.write("evaluation", step=step, metrics=self.evaluation, seconds=seconds)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in self.evaluation.items())
        self.say("evaluation", f"step {step}: {shown}")

    def checkpoint(self, entry: dict[str, Any]) -> None:
        """Append what became of a checkpoint."""
        self._append([entry])
        if "error" in entry:
            self.say("warning", f"checkpoint of step {entry['step']} failed: {entry['error']}")
        else:
            self.say("checkpoint", f"step {entry['step']}: {entry['uri']}")
        if "warning" in entry:
            self.say("warning", entry["warning"])

    def look_after(self) -> None:
        """Once a second: write again what the disk refused, and tell when MLflow falls silent or comes back."""
        if self._warned_ledger:
            self._append([])
        problem = self._recorder.problem if self._recorder is not None else None
        if problem and not self._warned_record:
            first = problem.splitlines()[0][:200]
            self.say("warning", f"MLflow does not take the record ({first}); training goes on, the points are kept")
        elif self._warned_record and not problem:
            self.say("info", "MLflow takes the record again")
        self._warned_record = bool(problem)

    def say(self, kind: str, text: str) -> None:
        """News for the display."""
        text = redact(text)
        self._news.append((kind, text))
        self.on_news(kind, text)

    @property
    def is_behind(self) -> bool:
        """Whether MLflow does not take the record, or the disk the ledger."""
        return self._warned_ledger or self._warned_record

    @property
    def news_count(self) -> int:
        """How many news there are so far."""
        return len(self._news)

    def news(self, after: int) -> list[tuple[str, str]]:
        """News from number `after` on; negative: the last ones; beyond the end, because of a restart: all."""
        return self._news[after:] if after <= len(self._news) else list(self._news)

    def metrics(self, step: int) -> dict[str, float]:
        """What is known of the state after `step`: for the checkpoint's manifest."""
        known = {"train/loss": self.last.loss} if self.last and self.last.step == step else {}
        return {**known, **(self.evaluation if self.evaluated_at == step else {})}

    def _recall_noise(self, entries: Iterable[Entry]) -> None:
        """Go on with the noise scale as it stood after the last committed step."""
        self._noise = NoiseScale()
        commits = (e for e in effective(entries) if e["kind"] == "commit" and e["step"] <= self.committed)
        for found in map(measured_of, commits):
            if found is not None:
                self._noise.add(found)

    def _append(self, entries: list[dict[str, Any]]) -> None:
        self._ledger.append(entries)
        for entry in entries:
            self.on_entry(entry)
        blocked = self._ledger.blocked
        if blocked and not self._warned_ledger:
            self.say("warning", f"the ledger cannot be written and is kept in memory until it can: {blocked}")
        self._warned_ledger = bool(blocked)

    def _entry(self, commit: Commit) -> dict[str, Any]:
        (first, stop), tokens = commit.samples, self._plan.job.task.tokens_per_sample
        speed = (stop - first) / commit.step_s if commit.step_s > 0 else 0.0
        entry = {
            "kind": "commit",
            "time": time.time(),
            "step": commit.step,
            "view": commit.view,
            "samples": list(commit.samples),
            "epoch": commit.samples[1] / self._plan.train.samples,
            "progress": commit.progress,
            "loss": commit.loss,
            "lr": commit.lr,
            "grad_norm": commit.grad_norm,
            "batch": commit.batch,
            "workers": commit.workers,
            "step_s": commit.step_s,
            "data_wait_s": commit.data_wait_s,
            "compute_s": commit.compute_s,
            "communicate_s": commit.communicate_s,
            "update_s": commit.update_s,
            "samples_per_s": speed,
        }
        if commit.noise is not None:
            self._noise.add(commit.noise)
            entry["noise"] = asdict(commit.noise)
            estimates = {"noise_scale": self._noise.scale, "critical_batch": self._noise.critical_batch}
            entry |= {name: value for name, value in estimates.items() if value is not None and isfinite(value)}
        if commit.samples_digest:
            entry["samples_digest"] = commit.samples_digest
        if commit.covered < self._plan.job.batch.virtual_shards:
            entry["covered"] = commit.covered
        told = zip(self._plan.train.names, commit.sources, strict=False)
        if sources := {name: {"samples": n, "loss": loss} for name, (n, loss) in told if n}:
            entry["sources"] = sources
        return {**entry, "tokens_per_s": speed * tokens} if tokens else entry


def measured_of(entry: Mapping[str, Any]) -> Measured | None:
    """What a commit's entry says of the noise of its gradient."""
    found = entry.get("noise")
    return Measured(**found) if found else None


def _commit_of(entry: Mapping[str, Any], virtual_shards: int) -> Commit:
    """A commit as its ledger entry has it."""
    known = {f.name for f in fields(Commit)}
    unsaid = {"covered": virtual_shards, "samples_digest": "", "progress": 0.0}  # as earlier releases leave it out
    said = {**unsaid, **entry, "samples": tuple(entry["samples"]), "noise": measured_of(entry)}
    return Commit(**{name: value for name, value in said.items() if name in known})
