"""Which node is meant, who counts as still there, a drain that fails at first; canaries for what it needs of Ray."""

from __future__ import annotations

import inspect
import time
from typing import Any

import pytest

from shoal.cli.main import run as shoal_command
from shoal.errors import CapacityError, ConfigError
from shoal.notices.cluster import ClusterSeen, NodeSeen
from shoal.notices.draining import ThisNode, drain_for, is_training, local_addresses, pick, this_node, wait_until_left
from shoal.notices.notice import Notice

pytestmark = pytest.mark.unit

HEAD, ONE, TWO = NodeSeen("aa", "10.0.0.1", True), NodeSeen("bb", "10.0.0.2", False), NodeSeen("cc", "10.0.0.2", False)


class Cluster:
    """A cluster that notes what it is asked for, and fails a few times first. Stands for `ClusterSeen`, which cluster
    tests drive."""

    def __init__(self, *, failures: int = 0, leaves_after: int = 0) -> None:
        self.drained: list[tuple[str, str, float]] = []
        self._failures, self._looks, self._leaves_after = failures, 0, leaves_after

    def nodes(self) -> list[NodeSeen]:
        return [HEAD, ONE]

    def drain(self, node: str, why: str, deadline: float) -> None:
        self._failures -= 1
        if self._failures >= 0:
            raise ConnectionError("the head is being restarted")
        self.drained.append((node, why, deadline))

    def actors(self, node: str) -> list[tuple[str, str]]:
        self._looks += 1
        others = [("Feed", "shoal-x-feed"), ("Trainer", "somebody's")]
        return others if self._looks > self._leaves_after else [("Worker", "shoal-x-w0"), *others]


def at(cluster: Cluster) -> ThisNode:
    return ThisNode(cluster, ONE)  # type: ignore[arg-type]


def test_the_node_of_this_machine_is_picked_by_its_address() -> None:
    assert pick([HEAD, ONE], None, {"127.0.0.1", "10.0.0.2"}, "head:6379") == ONE
    assert pick([HEAD, ONE, TWO], "cc", set(), "head:6379") == TWO
    with pytest.raises(ConfigError, match=r"--node-id: bb .* cc"):
        pick([HEAD, ONE, TWO], None, {"10.0.0.2"}, "head:6379")
    with pytest.raises(ConfigError, match="no living node dd; it has: aa"):
        pick([HEAD], "dd", set(), "head:6379")
    with pytest.raises(CapacityError, match="no living node on this machine"):
        pick([HEAD], None, {"10.9.9.9"}, "head:6379")
    assert "127.0.0.1" in local_addresses()


def test_a_drain_that_fails_is_tried_again_until_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.notices.draining.RETRY_S", 0.01)
    said: list[str] = []
    cluster, deadline = Cluster(failures=2), time.time() + 30
    assert drain_for(Notice("GCP preemption", deadline), lambda: at(cluster), said.append)
    assert cluster.drained == [("bb", "GCP preemption", deadline)]
    assert "node bb at 10.0.0.2 is drained" in said[-1]
    assert not drain_for(Notice("GCP preemption", time.time()), lambda: at(Cluster(failures=9)), said.append)
    assert "could not be drained: the head is being restarted" in said[-1]


def test_a_notice_whose_time_has_come_still_drains() -> None:
    cluster = Cluster()
    assert drain_for(Notice("AWS spot interruption (hibernate)", time.time() - 5), lambda: at(cluster), lambda _: None)
    assert cluster.drained[0][2] > time.time() - 1


def test_waiting_ends_when_they_have_left_or_at_the_deadline() -> None:
    assert wait_until_left(at(Cluster(leaves_after=2)), time.time() + 10) == []
    assert wait_until_left(at(Cluster(leaves_after=10**6)), time.time() + 0.3) == ["shoal-x-w0"]


def test_who_counts_as_there() -> None:
    assert is_training("Worker", "shoal-pool-p/w1")
    assert is_training("Coordinator", "shoal-gpt-1")
    assert not is_training("Feed", "shoal-gpt-1-feed")


def test_a_dead_address_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(CapacityError, match="does not answer"):
        this_node("127.0.0.1:9")
    assert shoal_command(["drain-node", "--address", "127.0.0.1:9"]) == 2
    assert "check the address" in capsys.readouterr().err
    assert time.monotonic() - begun < 20


def test_ray_still_has_what_a_drain_stands_on() -> None:
    from ray._private import services, state
    from ray._raylet import GcsClient, GcsClientOptions, InnerGcsClient  # type: ignore[attr-defined]
    from ray.core.generated import gcs_pb2
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    assert callable(GcsClient)
    assert callable(GcsClientOptions.create)
    assert {"drain_node", "get_all_node_info"} <= set(dir(InnerGcsClient))
    assert DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION") > 0
    assert gcs_pb2.GcsNodeInfo.GcsNodeState.Value("ALIVE") == 0  # type: ignore[attr-defined]
    fields: Any = gcs_pb2.GcsNodeInfo.DESCRIPTOR.fields_by_name  # type: ignore[attr-defined]
    assert {"node_manager_address", "is_head_node", "state"} <= set(fields)
    assert "addr" in inspect.signature(services.canonicalize_bootstrap_address).parameters
    table = inspect.signature(state.GlobalState.actor_table)
    assert "actor_state_name" in table.parameters
    assert hasattr(state.GlobalState, "_initialize_global_state")
    assert hasattr(ClusterSeen, "drain")


def test_ray_still_ends_a_worker_by_a_handler_of_pythons() -> None:
    """`worker.termination` takes its place; were it a handler of C++, ours would never run."""
    from ray._private.worker import Worker

    assert "set_sigterm_handler" in inspect.getsource(Worker.main_loop)
