"""Ray nodes that come and go: raylets on this machine, with one place for a worker each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import ray

from shoal.notices.cluster import ClusterSeen
from tests.support.own_cluster import OwnCluster

LABEL = "churn-slot"
NOTICE_S = 12.0
"""From an announcement to the end of the node. A trace in which clouds' two minutes are shortened would leave no
system time for anything."""
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}


class Nodes:
    """A head without places for workers, and a node for each slot."""

    def __init__(self, first: Sequence[str], environment: dict[str, str]) -> None:
        self.cluster = OwnCluster(environment=environment)
        os.environ.update(self.cluster.env)
        self.cluster.start_head(cpus=2, settings=HEALTH)
        self._lock = threading.Lock()
        self._gone: set[str] = set()
        starting = [threading.Thread(target=self._add, args=(slot,)) for slot in first]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")

    def join(self, slot: str) -> None:
        """Start a node; returns at once."""
        threading.Thread(target=self._add, args=(slot,), daemon=True).start()

    def kill(self, slot: str) -> None:
        """Its raylet and everybody there, at once."""
        with self._lock:
            self._gone.add(slot)
            with suppress(StopIteration):  # it is not up yet, and dies when it is
                self.cluster.kill_node(_mark(slot))

    def leave(self, slot: str) -> None:
        """Drain it as the watcher of a cloud's notices does; it is killed NOTICE_S later."""
        ids = [n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Labels"].get(LABEL) == slot]
        seen = ClusterSeen(self.cluster.address)
        for node in ids:
            seen.drain(node, "spot notice", time.time() + NOTICE_S)
        timer = threading.Timer(NOTICE_S, self.kill, (slot,))
        timer.daemon = True
        timer.start()

    def close(self) -> None:
        ray.shutdown()
        self.cluster.close()

    def _add(self, slot: str) -> None:
        self.cluster.add_node("--resources", '{"slot": 1}', "--labels", f"{LABEL}={slot}")
        with self._lock:
            if slot in self._gone:
                with suppress(StopIteration):
                    self.cluster.kill_node(_mark(slot))


def _mark(slot: str) -> str:
    """How a raylet's command line has the label."""
    return f'"{LABEL}": "{slot}"'
