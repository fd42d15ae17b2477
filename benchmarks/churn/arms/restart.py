"""Checkpoint and restart by hand: a supervisor ends all processes at a change and starts as many as have a place."""

from __future__ import annotations

import subprocess
import threading
import time

from benchmarks.churn.arms.base import WORKER, ProcessArm, Setup, end, write_spec
from tests.support.own_cluster import free_ports

SAVE_S = 10.0
"""Longest wait for ranks that save and end."""


class Restart(ProcessArm):
    """What people write round torch DDP. The supervisor sees the end of a process at once; an announced change (a
    leave, a join) makes all ranks save after the same step before they end, so nothing is computed twice then."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.settings = {"checkpoint every": f"{setup.every} steps", "looks at its processes every": "0.02 s"}
        self.spec = write_spec(setup, every=setup.every, graceful=True)
        self.places: list[str] = []
        self.announced = False
        self._changed = threading.Event()

    def join(self, slot: str) -> None:
        self.places.append(slot)
        self.announced = True
        self._changed.set()

    def kill(self, slot: str) -> None:
        self.places.remove(slot)
        process = self.slots.get(slot)
        if process is not None:
            end(process.pid)

    def leave(self, slot: str) -> None:
        self.places.remove(slot)
        self.announced = True
        self._changed.set()

    def look(self) -> None:
        died = any(p.poll() is not None for p in self.slots.values())
        if not died and not self._changed.is_set():
            return
        self._changed.clear()
        if self.announced and not died and self.slots:
            self._save()
        self.announced = False
        for process in self.slots.values():
            end(process.pid)
            process.wait()
        self._start()

    def start(self, slot: str) -> subprocess.Popen[bytes]:
        raise NotImplementedError("all slots are started together")

    def _save(self) -> None:
        """Ask one rank, which tells the others with its next step."""
        processes = list(self.slots.values())
        processes[0].terminate()
        deadline = time.monotonic() + SAVE_S
        while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
            time.sleep(0.005)

    def _start(self) -> None:
        slots, port = list(self.places), str(free_ports(1)[0])
        self.slots = {}
        for rank, slot in enumerate(slots):
            environment = {"RANK": str(rank), "WORLD_SIZE": str(len(slots)), "MASTER_ADDR": "127.0.0.1"}
            self.slots[slot] = self.launch(
                [*WORKER, str(self.spec)], {**environment, "MASTER_PORT": port}, f"rank{rank}"
            )
