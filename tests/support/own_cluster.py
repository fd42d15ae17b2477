"""A Ray cluster of real processes that a test starts, breaks and ends by itself, with Ray's own autoscaler on its fake
provider, whose nodes are raylets on this machine.

Every process carries a mark in its environment, and only those that do are ended.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray

BIN = Path(sys.executable).parent
MARK = "SHOAL_TEST_CLUSTER"
MEMORY = 150 << 20
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
"""A node that dies is noticed after two seconds, not after fifteen."""
HOST = "127.0.0.1"

_HEAD = "ray.head.default"  # the fake provider knows it by this name alone
_PROVIDER = {
    # Ray's wheel lacks the file that the name `fake_multinode` leads to; the class itself is there.
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
    "launch_multiple": True,
}
_AUTOSCALING: Mapping[str, Any] = {
    "cluster_name": "fake", "max_workers": 8, "head_node_type": _HEAD, "upscaling_speed": 100,
    "idle_timeout_minutes": 0.05, "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
    "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [], "initialization_commands": [],
    "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
}  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((HOST, 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class OwnCluster:
    """A Ray cluster of its own port and folder."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Besides this process's."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="shoal")))
    port: int = field(default_factory=lambda: free_ports(1)[0])

    @property
    def address(self) -> str:
        """Of its GCS."""
        return f"{ray.util.get_node_ip_address()}:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of its processes, and of those that join it."""
        mine = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
        paths = os.pathsep.join([os.getcwd(), mine.get("PYTHONPATH", "")])  # tasks are defined in tests/
        own = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "PYTHONPATH": paths, MARK: self.mark}
        return {**mine, **own, **self.environment}

    def start_head(self, *arguments: str, cpus: float = 0, settings: Mapping[str, Any] = QUICK) -> None:
        """Start the head's processes; again after they were killed, with the same address."""
        (self.folder / "r" / "ray_current_cluster").unlink(missing_ok=True)  # a new machine has never had a cluster
        ray_client = free_ports(1)[0]
        self._ray(
            "start", "--head", f"--port={self.port}", f"--temp-dir={self.folder}/r", "--include-dashboard=false",
            f"--ray-client-server-port={ray_client}", f"--num-cpus={cpus:g}",
            "--system-config=" + json.dumps(dict(settings)), *arguments,
        )  # fmt: skip

    def start_autoscaling_head(self, groups: Mapping[str, Mapping[str, Any]], *, cpus: float = 0) -> None:
        """Start a head whose autoscaler (Ray's second one) adds nodes of these groups, as raylets on this machine, and
        takes them back after they have idled for some seconds."""
        from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

        head = {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
        config = {
            **_AUTOSCALING,
            "provider": {**_PROVIDER, "gcs_address": self.address, "head_node_id": FAKE_HEAD_NODE_ID},
            "available_node_types": {_HEAD: head, **groups},
        }
        file = self.folder / "autoscaling.json"
        file.write_text(json.dumps(config))
        self.environment = {
            **self.environment,
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        self.start_head(f"--autoscaling-config={file}", cpus=cpus)

    def add_node(self, *arguments: str, cpus: float = 1) -> None:
        """Start one more node."""
        self._ray("start", f"--address={self.address}", f"--num-cpus={cpus:g}", *arguments)

    def _ray(self, *arguments: str) -> None:
        common = (
            f"--node-ip-address={self.address.partition(':')[0]}", f"--object-store-memory={MEMORY}",
            "--disable-usage-stats", "--min-worker-port=0", "--max-worker-port=0",
        )  # fmt: skip
        said = subprocess.run(
            [str(BIN / "ray"), *arguments, *common], env=self.env, capture_output=True, text=True, check=False
        )
        assert not said.returncode, said.stdout + said.stderr

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Those of this cluster whose name begins so."""
        found = []
        for process in psutil.process_iter(["pid", "name"]):
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.info["name"].startswith(name):
                    found.append(process)
        return [p for p in found if p.pid != os.getpid()]

    def kill_node(self, node: str) -> None:
        """As if the machine of the node of that id (hex) had lost its power: everybody there at once."""
        raylet = next(p for p in self.processes("raylet") if node in _node_id(p))
        for process in (raylet, *raylet.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        """End every process that is left."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            left = self.processes()
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(how)
            psutil.wait_procs(left, timeout=5)
        shutil.rmtree(self.folder, ignore_errors=True)


def _node_id(raylet: psutil.Process) -> str:
    """What a raylet was told to be, in its arguments or its environment."""
    return " ".join([*raylet.cmdline(), raylet.environ().get("RAY_OVERRIDE_NODE_ID_FOR_TESTING", "")])
