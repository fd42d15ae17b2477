"""Several nodes: one dies with everything on it, one is taken back with notice. Real raylets, on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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
from shoal.tracking.metrics import METRICS
from tests.cluster.faults.conftest import Result, Train, alone, job
from tests.support.conductor import Conductor, members, until
from tests.support.faults import Fault
from tests.support.metadata_services import metadata_service
from tests.support.paced import Paced
from tests.support.runs import Listener, ledger
from tests.support.scraping import scrape

pytestmark = pytest.mark.cluster

NODES, SLOTS = 2, 2
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
    "metrics_report_interval_ms": 1000,
}
MEMORY = 150 << 20
LONG = 800
BATCH = 32


@pytest.fixture(scope="module")
def nodes(no_cluster: None) -> Iterator[Any]:
    """A head without places for workers, and the means to add nodes."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_worker_niceness", "0")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_enable_metrics_collection", "1")  # a local cluster of an earlier test may have set it
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": paths}}
    ray.init(address=cluster.address, log_to_driver=False, logging_level=40, runtime_env=environment)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    monkeypatch.undo()


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


@pytest.mark.parametrize(("engine", "how"), [("replicated", "notice"), ("zero1", "drain-node")])
def test_a_node_that_goes_is_left_in_time(
    train: Train, long_undisturbed: Result, nodes: Any, engine: str, how: str
) -> None:
    """All members are on the node that goes: they train until others can take over, and no step is computed twice.

    `notice`: the cloud's metadata service says so, to a watcher beside the node. `drain-node`: what a pod's preStop
    hook does, which ends when nobody is left.
    """
    left: list[str] = []

    def act(coordinator: Any) -> None:
        node = members(coordinator)[0].node
        left.append(node)
        if how == "notice":
            operators_see_the_run(conductor.run_id)
            notice(nodes.address, node)
        else:
            command(nodes.address, "drain-node", "--node-id", node, "--deadline", "60")
        until(lambda: all(m.node != node for m in members(coordinator)) and len(members(coordinator)) == 2)

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
    assert left[0] not in nodes_of(result.entries("view")[-1]).values()


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


def notice(cluster: str, node: str) -> None:
    """The metadata service of a spot machine of AWS says that it goes in a minute; its watcher does the rest."""
    with metadata_service("aws") as service:
        watcher = started(cluster, "watch-node", "--endpoint", service.url, "--node-id", node)
        until(lambda: len(service.asked) > 10 or watcher.poll() is not None)
        service.take(time.time() + 60)
        _, said = watcher.communicate(timeout=30)
        assert watcher.returncode == 0, said
        assert f"AWS spot interruption (terminate): node {node}" in said


def operators_see_the_run(run: str) -> None:
    """Prometheus would find the run's numbers at the nodes' metrics endpoints, under the names of the dashboard."""
    until(lambda: (scrape(run).get("ray_shoal_steps_total") or 0) > 0)
    seen = scrape(run)
    assert seen.get("ray_shoal_workers", state="member", job_name="digits") == 2
    assert seen.get("ray_shoal_phase", phase="training") == 1
    steps, samples = seen.get("ray_shoal_steps_total"), seen.get("ray_shoal_samples_total")
    assert steps
    assert samples == steps * BATCH
    assert (seen.get("ray_shoal_step_seconds") or 0) > 0
    always = {m.exported for m in METRICS if m.kind == "gauge"} - {"ray_shoal_snapshot_age_seconds"}
    assert seen.names >= always
    assert seen.names <= {m.exported for m in METRICS}


def command(cluster: str, *arguments: str) -> None:
    """A command of Shoal's that ends well."""
    process = started(cluster, *arguments)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said


def started(cluster: str, *arguments: str) -> subprocess.Popen[str]:
    """A command of Shoal's, on one of the nodes."""
    line = [sys.executable, "-m", "shoal", *arguments, "--address", cluster]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
