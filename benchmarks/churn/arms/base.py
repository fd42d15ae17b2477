"""The small interface behind which all systems are driven alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.churn.eventlog import EventLog, read_log
from benchmarks.churn.loop import FINAL
from benchmarks.churn.schedule import Schedule
from benchmarks.churn.workload import Workload

ROOT = Path(__file__).resolve().parents[3]
POLL_S = 0.02


@dataclass(frozen=True)
class Setup:
    """What an arm is told of one run."""

    workload: Workload
    schedule: Schedule
    folder: Path
    """Of this run alone: its logs and what it leaves."""
    tokens: Path
    most: int
    """Workers at most."""
    every: int
    """Steps between two checkpoints, of those who need them."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set: what was to be seen was seen; the run may be broken off."""


class Arm(ABC):
    """One system, training once. Slots are places of one worker each."""

    settings: dict[str, Any]
    """Those that differ from the system's defaults, for the page."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.settings = {}
        self.exit = ExitStack()

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *_: object) -> None:
        self.exit.close()

    @abstractmethod
    def train(self, conduct: Callable[[], None]) -> None:
        """Train with the schedule's first slots to the end, or to `setup.stop`. `conduct` is called once, in a thread
        of its own, when the system was started."""

    @abstractmethod
    def join(self, slot: str) -> None:
        """A new place is there."""

    @abstractmethod
    def kill(self, slot: str) -> None:
        """It is gone, and who worked there is, without a word."""

    @abstractmethod
    def leave(self, slot: str) -> None:
        """It will go, and that is said beforehand; returns at once."""

    @abstractmethod
    def pids(self) -> list[int]:
        """The processes that train."""

    @property
    def begins_with(self) -> int:
        """Workers that there are before the first change."""
        return len(self.setup.schedule.first)

    def workers(self) -> int:
        """How many took part in the last step."""
        steps = [e for e in read_log(self.setup.folder) if e["kind"] == "step"]
        return steps[-1]["workers"] if steps else 0

    def steps(self) -> int:
        """How many steps were done, whoever threw some away."""
        return sum(e["kind"] == "step" for e in read_log(self.setup.folder))


class ProcessArm(Arm):
    """A system whose slots are processes that are started here, one (with its children) in each."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.slots: dict[str, subprocess.Popen[bytes]] = {}
        self.gone: list[subprocess.Popen[bytes]] = []
        self.exit.callback(self._end_all)

    @abstractmethod
    def start(self, slot: str) -> subprocess.Popen[bytes]:
        """What runs in one slot."""

    def train(self, conduct: Callable[[], None]) -> None:
        for slot in self.setup.schedule.first:
            self.join(slot)
        threading.Thread(target=conduct, daemon=True).start()
        while not self.setup.stop.is_set() and not (self.setup.folder / FINAL).exists():
            self.look()
            time.sleep(POLL_S)

    def look(self) -> None:
        """Called all the time."""

    def join(self, slot: str) -> None:
        self.slots[slot] = self.start(slot)

    def kill(self, slot: str) -> None:
        process = self.slots.pop(slot)
        end(process.pid)
        process.wait()

    def leave(self, slot: str) -> None:
        process = self.slots.pop(slot)
        process.terminate()
        self.gone.append(process)

    def pids(self) -> list[int]:
        return [p for process in self.slots.values() for p in family(process.pid)]

    def launch(self, command: Sequence[str], environment: Mapping[str, str], name: str) -> subprocess.Popen[bytes]:
        """A process whose words go to a file of the run's folder."""
        paths = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
        out = (self.setup.folder / f"{name}.txt").open("ab")
        with out:
            return subprocess.Popen(
                list(command),
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
            )

    def _end_all(self) -> None:
        for process in (*self.slots.values(), *self.gone):
            end(process.pid)
            process.wait()


def family(pid: int) -> list[int]:
    """A process and all below it."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return [pid, *(p.pid for p in process.children(recursive=True))]
    return []


def end(pid: int) -> None:
    """SIGKILL to a process and all below it."""
    for one in family(pid):
        with suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def write_spec(setup: Setup, *, view: str = "", engine: str = "ddp", every: int = 0, graceful: bool = False) -> Path:
    """The file that `benchmarks.churn.worker` reads."""
    path = setup.folder / "spec.json"
    spec = {
        "workload": setup.workload.as_dict(),
        "folder": str(setup.folder),
        "tokens": str(setup.tokens),
        "view": view,
        "engine": engine,
        "every": every,
        "graceful": graceful,
    }
    path.write_text(json.dumps(spec))
    return path


WORKER = (sys.executable, "-m", "benchmarks.churn.worker")


def memory_of(pids: Sequence[int]) -> int:
    """Bytes of their private memory and their parts of what is shared (PSS)."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def log_of(setup: Setup) -> EventLog:
    """This process's part of the log."""
    return EventLog(setup.folder)
