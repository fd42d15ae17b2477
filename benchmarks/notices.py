"""From a cloud's notice to a safe departure: how long it takes until no worker is left on the node that goes.

One run, two workers, real raylets on this machine. Each event: a node joins that has room; the node on which the
members are gets a notice, from a local server that behaves like the metadata service of AWS or Google Cloud, through
`shoal watch-node`; its workers train on until others have taken their places on the new node. Then with a notice so
short that nobody is waited for, and no place elsewhere: the state becomes a checkpoint first.

    python -m benchmarks.notices [--events 5]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray

import shoal
from benchmarks.common import machine, spread, write_result
from benchmarks.recovery import job as main_job
from shoal.coordinator.status import MemberStatus, Outcome, RunStatus
from shoal.launch.api import RunOptions, run_job
from shoal.launch.supervise import find
from shoal.run_folder import RunFolder
from shoal.tracking.ledger import read
from tests.support.metadata_services import metadata_service

SLOTS = 2
MEMORY = 300 << 20
DEADLINE_S = 180.0
HASTY = "10 s"
KINDS: dict[str, tuple[Literal["aws", "gcp"], float]] = {
    "30 s (Google Cloud), places elsewhere": ("gcp", 30.0),
    "120 s (AWS), places elsewhere": ("aws", 120.0),
    f"{HASTY}, no place elsewhere: a checkpoint is made": ("aws", 10.0),
}


@dataclass
class Conductor:
    """A display that gives notices once the run stands."""

    cluster: Any
    events: int
    took: dict[str, list[float]] = field(default_factory=dict)
    failure: str | None = None
    _run: str = ""
    _thread: threading.Thread | None = None

    def started(self, info: Mapping[str, Any]) -> None:
        self._run = info["run_id"]

    def status(self, status: RunStatus) -> None:
        if self._thread is None and status.phase == "training":
            self._thread = threading.Thread(target=self._conduct, daemon=True)
            self._thread.start()

    def event(self, kind: str, text: str) -> None:
        if kind in ("join", "leave", "loss", "warning"):
            print(f"  {kind}: {text}", flush=True)

    def finished(self, outcome: Outcome) -> None:
        pass

    def _conduct(self) -> None:
        coordinator = find(self._run)
        try:
            for _ in range(self.events):
                for kind, (provider, seconds) in KINDS.items():
                    if not kind.startswith(HASTY):
                        node(self.cluster)
                    self._notice(coordinator, kind, provider, seconds)
                    if kind.startswith(HASTY):
                        node(self.cluster)
                    _wait(lambda: len(_members(coordinator)) == SLOTS)
        except Exception as error:  # noqa: BLE001 - told by the main thread, which waits for the run's end
            self.failure = repr(error)
        ray.get(coordinator.stop.remote("measured"))

    def _notice(self, coordinator: Any, kind: str, provider: Any, seconds: float) -> None:
        going = _members(coordinator)[0].node
        with metadata_service(provider) as service:
            line = ["watch-node", "--endpoint", service.url, "--address", self.cluster.address, "--node-id", going]
            watcher = subprocess.Popen([sys.executable, "-m", "shoal", *line], stderr=subprocess.DEVNULL)
            _wait(lambda: len(service.asked) > 8)
            begun = time.monotonic()
            service.take(time.time() + seconds)
            _wait(lambda: not _on(coordinator, going))
            self.took.setdefault(kind, []).append(time.monotonic() - begun)
            print(f"{kind}: {self.took[kind][-1]:.2f} s", flush=True)
            assert watcher.wait(timeout=30) == 0
        remove(self.cluster, going)


def node(cluster: Any) -> None:
    """One more node, with room for all workers."""
    cluster.add_node(num_cpus=SLOTS, resources={"slot": SLOTS}, object_store_memory=MEMORY)


def remove(cluster: Any, going: str) -> None:
    """What the cloud does in the end."""
    for one in [n for n in cluster.worker_nodes if n.node_id == going]:
        cluster.remove_node(one)


def _members(coordinator: Any) -> list[MemberStatus]:
    return [m for m in ray.get(coordinator.members.remote()) if m.rank is not None]


def _on(coordinator: Any, going: str) -> list[MemberStatus]:
    return [m for m in ray.get(coordinator.members.remote()) if m.node == going]


def _wait(look: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not look():
        assert time.monotonic() < deadline, "what was waited for did not come"
        time.sleep(0.02)


def main() -> None:
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    ray.init(
        address=cluster.address, log_to_driver=False, logging_level=40, runtime_env={"env_vars": {"PYTHONPATH": paths}}
    )
    node(cluster)
    try:
        with tempfile.TemporaryDirectory() as root:
            _report(cluster, options.events, Path(root))
    finally:
        ray.shutdown()
        cluster.shutdown()


def _report(cluster: Any, events: int, root: Path) -> None:
    from dataclasses import replace

    conductor = Conductor(cluster, events)
    workers = shoal.Workers(min=1, max=SLOTS, resources={"slot": 1})
    endless = replace(main_job("replicated", 10**6), workers=workers)
    outcome = run_job(endless, options=RunOptions(runs_dir=root), display=conductor)
    assert conductor.failure is None, conductor.failure
    entries = read(RunFolder(Path(outcome.folder)).ledger)[0]
    redone = sum(e["steps_redone"] for e in entries if e["kind"] == "change")
    losses = sum(e["kind"] == "loss" for e in entries)
    rows = [f"| {kind} | {spread(found, 2)} |" for kind, found in conductor.took.items()]
    head = (
        f"The main job with {SLOTS} workers on one node that goes; the watcher looks every 2 s. Seconds from the notice"
    )
    head += " at the metadata service until no worker is on that node. Where places are elsewhere, that is how long new"
    head += " processes take to start and to warm up; the others train on meanwhile."
    table = "| notice | seconds to departure |\n|---|---|\n" + "\n".join(rows)
    tail = f"Losses: {losses}. Steps computed again: {redone}."
    write_result("notices", f"# From a notice to a safe departure\n\n{machine()}\n\n{head}\n\n{table}\n\n{tail}\n")


if __name__ == "__main__":
    main()
