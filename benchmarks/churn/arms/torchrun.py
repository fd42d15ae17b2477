"""torchrun elastic: one agent per slot, `--nnodes=1:4`, all workers restart from the checkpoint at every change."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

from torch.distributed import TCPStore

from benchmarks.churn.arms.base import ProcessArm, Setup, write_spec
from tests.support.own_cluster import free_ports


class Torchrun(ProcessArm):
    """The rendezvous store is on a place that stays, as its documentation asks for."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.spec = write_spec(setup, every=setup.every)
        self.port = free_ports(1)[0]
        self.store = TCPStore("127.0.0.1", self.port, is_master=True, wait_for_workers=False, timeout=timedelta(60))
        self.settings = {
            "checkpoint every": f"{setup.every} steps",
            "--nnodes": f"1:{setup.most}",
            "--monitor-interval": "0.1",
            "--max-restarts": "1000",
            "--rdzv-conf": "is_host=0,last_call_timeout=1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }

    def start(self, slot: str) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "torch.distributed.run", f"--nnodes=1:{self.setup.most}", "--nproc-per-node=1",
            "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{self.port}", "--rdzv-id=churn", "--max-restarts=1000",
            "--monitor-interval=0.1", "--local-addr=127.0.0.1", "--rdzv-conf=is_host=0,last_call_timeout=1",
            "-m", "benchmarks.churn.worker", str(self.spec),
        ]  # fmt: skip
        # With the store shared between agents and workers, every restart after a SIGKILL hung in init_process_group.
        return self.launch(command, {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}, slot)
