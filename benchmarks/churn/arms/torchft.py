"""torchft: one replica group per slot, a lighthouse on a place that stays; survivors keep their processes.

It needs another build of torch's extensions than ours, so it lives in a virtual environment of its own
(`python -m benchmarks.churn.torchft_env` makes it), and its loop is `benchmarks/churn/torchft_worker.py`.
"""

from __future__ import annotations

import subprocess

from benchmarks.churn.arms.base import ROOT, ProcessArm, Setup, write_spec
from benchmarks.churn.torchft_env import BIN, found
from tests.support.own_cluster import free_ports

LIGHTHOUSE = {
    "--min_replicas": "1",
    "--heartbeat_timeout_ms": "1000",
    "--quorum_tick_ms": "50",
    "--join_timeout_ms": "1000",
}


class Torchft(ProcessArm):
    """The global batch is kept: each step is divided among those that take part in it. By default torchft would give
    every replica a batch of its own, and the batch would follow the number of workers."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if not found():
            raise RuntimeError("torchft is not there; make it: python -m benchmarks.churn.torchft_env")
        self.spec = write_spec(setup)
        self.port = free_ports(1)[0]
        self.settings = {**LIGHTHOUSE, "gloo time-out": "2 s", "quorum": "before each forward pass (not async)"}
        arguments = [part for pair in LIGHTHOUSE.items() for part in pair]
        command = [str(BIN / "torchft_lighthouse"), "--bind", f"[::]:{self.port}", *arguments]
        self.lighthouse = self.launch(command, {"RUST_LOG": "warn"}, "lighthouse")
        self.gone.append(self.lighthouse)

    def start(self, slot: str) -> subprocess.Popen[bytes]:
        environment = {
            "TORCHFT_LIGHTHOUSE": f"http://127.0.0.1:{self.port}",
            "RUST_LOG": "warn",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        worker = ROOT / "benchmarks" / "churn" / "torchft_worker.py"
        return self.launch([str(BIN / "python"), str(worker), str(self.spec), slot], environment, slot)
