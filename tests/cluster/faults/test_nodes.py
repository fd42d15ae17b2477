"""Several nodes: one dies with everything on it, one is taken back with notice. Real raylets, on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import shoal
from tests.cluster.faults.conftest import Result, Train, alone
from tests.support.conductor import Conductor, members, until
from tests.support.faults import Fault

pytestmark = pytest.mark.cluster

NODES, SLOTS = 2, 2
QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
MEMORY = 150 << 20
LONG = 800


@pytest.fixture(scope="module")
def nodes(no_cluster: None) -> Iterator[Any]:
    """A head without places for workers, and the means to add nodes."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_worker_niceness", "0")
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": paths}}
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40, runtime_env=environment)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def ray_cluster(nodes: Any) -> None:
    """Two nodes with two places each, whatever the test before has done to its nodes."""
    from shoal.ray_compat import draining_nodes

    def usable() -> int:
        found = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("slot")]
        return sum(n["NodeID"] not in draining_nodes() for n in found)

    for _ in range(NODES - usable()):
        nodes.add_node(num_cpus=SLOTS, resources={"slot": SLOTS}, object_store_memory=MEMORY)
    until(lambda: usable() == NODES)


def workers(low: int, high: int) -> shoal.Workers:
    return shoal.Workers(min=low, max=high, cpus=1.0, resources={"slot": 1})


def nodes_of(view: dict[str, Any]) -> dict[str, str]:
    return {m["id"]: m["node"] for m in view["members"]}


@pytest.mark.parametrize("engine", ["replicated", "zero2", "zero3"])
def test_a_node_dies_with_half_of_the_members(train: Train, undisturbed: Result, engine: str) -> None:
    """Two members at once, and still nothing is read from disk: a buddy is on another node."""
    result = train(engine, Fault("node", 1, 20, "backward"), workers=workers(1, NODES * SLOTS))
    assert (result.losses, result.state) == (undisturbed.losses, undisturbed.state)
    first, second, *_ = result.entries("view")
    gone = nodes_of(first)[first["members"][1]["id"]]
    assert set(second["lost"]) == {m for m, node in nodes_of(first).items() if node == gone}
    assert len(second["lost"]) == SLOTS
    assert gone not in nodes_of(second).values()
    assert second["source"] == "memory"


@pytest.mark.parametrize("engine", ["replicated", "zero1"])
def test_a_drained_node_is_left_in_time(train: Train, long_undisturbed: Result, engine: str) -> None:
    """All members are on the node that goes: they train until others can take over, and no step is computed twice."""
    drained: list[str] = []

    def act(coordinator: Any) -> None:
        drained.append(members(coordinator)[0].node)
        drain(drained[0])
        until(lambda: all(m.node != drained[0] for m in members(coordinator)) and len(members(coordinator)) == 2)

    conductor = Conductor(act)
    slow = [Fault("slow", rank, 1, "forward") for rank in (0, 1)]  # or the run would be over before anybody comes
    result = train(engine, *slow, listener=conductor, workers=workers(1, 2), budget=shoal.Budget(steps=LONG))
    assert conductor.error is None, conductor.error
    assert (result.losses, result.state) == (long_undisturbed.losses, long_undisturbed.state)
    assert not result.entries("loss"), "nobody was lost"
    changes = result.entries("change")
    assert {c["what"] for c in changes} == {"leave", "join"}
    assert {v["source"] for v in result.entries("view")[1:]} == {"memory"}
    assert all(c["steps_redone"] == 0 for c in changes)
    assert drained[0] not in nodes_of(result.entries("view")[-1]).values()


@pytest.fixture
def long_undisturbed(train: Train) -> Result:
    return alone(train, LONG)


def drain(node: str) -> None:
    """What a cloud's notice becomes: the node goes in a minute."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--node-id", node]
    address = ray.get_runtime_context().gcs_address
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
    subprocess.run(
        [*command, "--address", address, *reason, "--deadline-remaining-seconds", "60"], check=True, capture_output=True
    )
