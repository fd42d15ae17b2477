"""Shoal, on a Ray cluster of this machine; a place is a worker that the run may have (`shoal scale`)."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray

from benchmarks.churn.arms.base import Arm, Setup, log_of
from benchmarks.churn.loop import FINAL
from benchmarks.churn.workload import CHECKPOINT_EVERY
from shoal.coordinator.status import MemberStatus, Outcome, RunStatus
from shoal.launch.api import RunOptions, run_job
from shoal.launch.supervise import find
from shoal.pool import PoolSpec, open_pool
from shoal.run_folder import RunFolder
from shoal.state.layout import Extent
from shoal.state.reader import CheckpointReader
from shoal.tracking.ledger import read

SPARE = 2
"""Processes of the pool beyond the places: for those that were killed and are not replaced yet."""
PARTS = ("detect_s", "regroup_s", "state_s", "resume_s", "idle_s")


class OnShoal(Arm):
    """One run. A place that comes is one worker more that it may have, whose process starts then; one that goes takes
    its process with it and is not to be replaced."""

    def __init__(self, setup: Setup, engine: str, numerics: Literal["fast", "exact"], *, warm: bool = False) -> None:
        """`warm`: a pool has the processes ready, and starts another one in the place of each that was killed."""
        super().__init__(setup)
        self.job = setup.workload.job(engine, numerics, len(setup.schedule.first))
        self.settings = {"numerics": numerics, "checkpoint every": f"{CHECKPOINT_EVERY} steps", "max_failures": -1}
        self.places = list(setup.schedule.first)
        self.run_id = ""
        self.pool: str | None = None
        if warm:
            spec = PoolSpec(workers=setup.most + SPARE, numerics=numerics, sharded=engine != "replicated")
            pool = self.exit.enter_context(open_pool(spec))
            pool.warm_up(spec.workers, coordinators=1)
            self.pool = pool.name
            self.settings["pool"] = f"{spec.workers} processes"

    def train(self, conduct: Callable[[], None]) -> None:
        display = _Display(self, conduct)
        outcome = run_job(
            self.job, options=RunOptions(runs_dir=self.setup.folder / "runs", pool=self.pool), display=display
        )
        if outcome.status == "failed":
            raise RuntimeError(f"the run failed: {outcome.error}")
        self._tell(outcome)

    def join(self, slot: str) -> None:
        self.places.append(slot)
        self._scale()

    def kill(self, slot: str) -> None:
        if (worker := self._give_up(slot)) is not None and worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
        self._scale()

    def leave(self, slot: str) -> None:
        if (worker := self._give_up(slot)) is not None:
            ray.get(self._coordinator().end_worker.remote(worker.member, "leave"))
        self._scale()

    def _give_up(self, slot: str) -> MemberStatus | None:
        """The worker in a place, which is no longer one: both are in order of arrival. None: it has not come yet."""
        at = self.places.index(slot)
        del self.places[at]
        workers = sorted(self._members(), key=lambda m: (len(m.member), m.member))
        there = [m for m in workers if m.state != "leaving"]
        return there[at] if at < len(there) else None

    def _scale(self) -> None:
        ray.get(self._coordinator().scale.remote(1, len(self.places)))

    def _coordinator(self) -> Any:
        return find(self.run_id)

    def pids(self) -> list[int]:
        return [m.pid for m in self._members() if m.pid is not None]

    def workers(self) -> int:
        members = [m for m in self._members() if m.rank is not None]
        return len(members) if all(m.step_s for m in members) else 0

    def steps(self) -> int:
        return max((m.step or 0 for m in self._members()), default=0)

    def _members(self) -> list[MemberStatus]:
        return list(ray.get(self._coordinator().members.remote())) if self.run_id else []

    def stop_run(self) -> None:
        """End at the next boundary."""
        ray.get(self._coordinator().stop.remote("measured"))

    def _tell(self, outcome: Outcome) -> None:
        """The run's ledger, in the common form."""
        log, batch = log_of(self.setup), self.setup.workload.batch
        for event in events(read(RunFolder(Path(outcome.folder)).ledger)[0], batch):
            log(**event)
        assert outcome.checkpoint is not None, "a run ends with a checkpoint"
        reader = CheckpointReader(outcome.checkpoint)
        table = [Extent(p.name, 0, p.numel) for p in reader.manifest.parameters]
        flat = np.ascontiguousarray(reader.read("param", table).numpy())
        np.save(self.setup.folder / FINAL, flat)
        log("end", steps=outcome.step, digest=hashlib.sha256(flat.tobytes()).hexdigest())


def events(ledger: Sequence[Mapping[str, Any]], batch: int) -> Iterator[dict[str, Any]]:
    """A ledger in the common form. Pure."""
    told: set[int] = set()
    committed = voided = 0
    for entry in ledger:
        t = entry["time"]
        if entry["kind"] == "commit":
            committed = entry["step"]
            fields = {"step": committed, "view": str(entry["view"]), "workers": entry["workers"]}
            yield {"kind": "step", "t": t, **fields, "step_s": entry["step_s"]}
        elif entry["kind"] == "resume":
            # Commits that it takes back come a second time, and are counted as repeated by that.
            voided, committed = committed - entry["from_step"], entry["from_step"]
        elif entry["kind"] == "change":
            yield {"kind": "parts", "t": t, "what": entry["what"], **{name: entry[name] for name in PARTS}}
            if entry["view"] not in told:
                told.add(entry["view"])
                redone, voided = max(0, entry["steps_redone"] - voided), 0
                if redone:
                    yield {"kind": "redone", "t": t, "samples": redone * batch}


class _Display:
    """Starts the conducting once the run trains, and ends the run when all was seen."""

    def __init__(self, arm: OnShoal, conduct: Callable[[], None]) -> None:
        self._arm, self._conduct, self._begun = arm, conduct, False

    def started(self, info: Mapping[str, Any]) -> None:
        self._arm.run_id = info["run_id"]

    def status(self, status: RunStatus) -> None:
        if not self._begun and status.phase == "training":
            self._begun = True
            threading.Thread(target=self._conduct, daemon=True).start()
        if self._arm.setup.stop.is_set() and status.phase != "stopping":
            self._arm.stop_run()

    def event(self, kind: str, text: str) -> None:
        print(f"    {kind}: {text}", flush=True)

    def finished(self, outcome: Outcome) -> None:
        self._arm.setup.stop.set()
        print(f"    {outcome.status} after {outcome.step} steps", flush=True)
