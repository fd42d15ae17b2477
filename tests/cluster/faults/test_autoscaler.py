"""A run on Ray's own autoscaler, from a head alone to four nodes and back, with a loss and a notice on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import shoal
from shoal.audit.run import audit_run
from shoal.notices.cluster import ClusterSeen
from shoal.run_folder import RunFolder
from tests.cluster.faults.conftest import Result, Train, alone
from tests.cluster.faults.test_nodes import nodes_of
from tests.support.conductor import Conductor, members, until
from tests.support.own_cluster import MEMORY, OwnCluster
from tests.support.paced import Paced

pytestmark = pytest.mark.cluster

MOST, STEPS = 4, 1200
SPOT = {
    "resources": {"CPU": 1, "slot": 1, "object_store_memory": MEMORY},
    "labels": {"market": "spot"},
    "node_config": {},
    "min_workers": 0,
    "max_workers": MOST,
}


@pytest.fixture(scope="module")
def autoscaling(no_cluster: None) -> Iterator[OwnCluster]:
    """A head without places for workers; its autoscaler can add four nodes."""
    cluster = OwnCluster()
    cluster.start_autoscaling_head({"spot": SPOT}, cpus=1)
    environment = {"env_vars": {"PYTHONPATH": cluster.env["PYTHONPATH"]}}
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40, runtime_env=environment)
    yield cluster
    ray.shutdown()
    cluster.close()


@pytest.fixture
def ray_cluster(autoscaling: OwnCluster) -> None:
    """What `train` runs on."""


def spot_nodes() -> set[str]:
    return {n["NodeID"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("slot")}


def test_from_no_node_to_four_and_back(train: Train, autoscaling: OwnCluster, tmp_path: Path) -> None:
    brake = tmp_path / "brake"
    brake.touch()
    seen: list[set[str]] = []

    def on_nodes(coordinator: Any) -> set[str]:
        return {m.node for m in members(coordinator)}

    def full_without(coordinator: Any, gone: str) -> bool:
        found = on_nodes(coordinator)
        return len(found) == MOST and gone not in found

    def act(coordinator: Any) -> None:
        until(lambda: len(on_nodes(coordinator)) == MOST)
        seen.append(on_nodes(coordinator))
        lost = members(coordinator)[1].node
        autoscaling.kill_node(lost)
        until(lambda: full_without(coordinator, lost))
        drained = members(coordinator)[2].node
        ClusterSeen(autoscaling.address).drain(drained, "spot notice", time.time() + 60)
        until(lambda: full_without(coordinator, drained))
        ray.get(coordinator.scale.remote(1, 1))
        until(lambda: len(on_nodes(coordinator)) == 1 and spot_nodes() == on_nodes(coordinator))
        seen.append(on_nodes(coordinator))
        brake.unlink()

    conductor = Conductor(act)
    assert not spot_nodes()
    want = shoal.Workers(min=1, max=MOST, resources={"slot": 1}, label_selector={"market": "spot"})
    budget = shoal.Budget(steps=STEPS)
    result = train("replicated", task=Paced(brake=str(brake)), listener=conductor, workers=want, budget=budget)
    assert conductor.error is None, conductor.error
    until(lambda: not spot_nodes())
    assert [len(found) for found in seen] == [MOST, 1]
    assert audit_run(RunFolder(Path(result.outcome.folder))).clean
    causes = [e["cause"] for e in result.entries("loss")]
    assert causes == ["worker lost"], "one node was lost; the one with notice was left in time"
    changes = result.entries("change")
    assert all(c["steps_redone"] == 0 for c in changes if c["what"] != "loss")
    assert all(len(nodes_of(v).values()) == len(set(nodes_of(v).values())) for v in result.entries("view"))
    calm: Result = alone(train, STEPS)
    assert (result.losses, result.state) == (calm.losses, calm.state)
