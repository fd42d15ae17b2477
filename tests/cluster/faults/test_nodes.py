"""Several nodes: one dies with everything on it, one is taken back with notice. Real raylets, on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

import shoal
from shoal.launch.api import RunOptions, submit_job
from shoal.launch.control import attach
from shoal.launch.supervise import find
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from tests.cluster.faults.conftest import Result, Train, alone, job
from tests.support.conductor import Conductor, members, until
from tests.support.faults import Fault
from tests.support.paced import Paced
from tests.support.runs import Listener, ledger

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


def test_a_run_of_a_higher_priority_gets_places_by_announced_leaves(
    train: Train, long_undisturbed: Result, runs: Path, tmp_path: Path
) -> None:
    """The lower one has the whole cluster; it gives what the other needs, goes on with the rest, and gets it back."""
    brake = tmp_path / "brake"
    brake.touch()
    lower = job(task=Paced(brake=str(brake)), workers=workers(1, NODES * SLOTS), budget=shoal.Budget(steps=LONG))
    submit_job(lower, options=RunOptions(runs_dir=runs, name="lower", if_detached="continue"), display=Listener())
    until(lambda: (found := find("lower")) is not None and len(members(found)) == NODES * SLOTS)
    urgent = replace(workers(2, 2), priority=5)
    higher = train("replicated", workers=urgent, name="higher", pool=None)
    assert len(higher.entries("view")[0]["members"]) == 2
    until(lambda: len(members(find("lower"))) == NODES * SLOTS)
    brake.unlink()
    outcome = attach(RunFolder(runs / "lower"), Listener())
    assert outcome.status == "finished", outcome.error
    assert outcome.checkpoint is not None
    assert state_digest(CheckpointReader(outcome.checkpoint)) == long_undisturbed.state
    entries = ledger(outcome)
    changes = [e for e in entries if e["kind"] == "change"]
    assert sum(c["what"] == "leave" for c in changes) in (1, 2), "both at once, or one after the other"
    assert all(c["steps_redone"] == 0 for c in changes)
    assert not [e for e in entries if e["kind"] == "loss"]


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
