"""Plain torch DDP or DeepSpeed ZeRO: nothing happens to it, and it would survive nothing. The measure of all others."""

from __future__ import annotations

import subprocess

from benchmarks.churn.arms.base import WORKER, ProcessArm, Setup, write_spec
from tests.support.own_cluster import free_ports


class Plain(ProcessArm):
    """One process of the loop in each of the first slots."""

    def __init__(self, setup: Setup, engine: str) -> None:
        super().__init__(setup)
        assert not setup.schedule.actions, "plain training survives no change"
        self.spec = write_spec(setup, view="plain", engine=engine)
        self.port = str(free_ports(1)[0])

    def start(self, slot: str) -> subprocess.Popen[bytes]:
        first = self.setup.schedule.first
        environment = {
            "RANK": str(first.index(slot)),
            "WORLD_SIZE": str(len(first)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self.port,
        }
        return self.launch([*WORKER, str(self.spec)], environment, slot)
