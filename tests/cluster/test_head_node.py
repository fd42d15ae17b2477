"""The head's processes die: the GCS alone, with Redis behind it; the whole node, without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from shoal.state.store import CheckpointStore
from shoal.tracking.ledger import effective, read
from tests.support.conductor import until
from tests.support.own_cluster import OwnCluster, Redis

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("no_cluster")]

STEPS = 300
RECIPE = """
import os
import shoal
from tests.support.paced import Paced

job = shoal.Job(
    name="digits",
    task=Paced(brake=os.environ.get("BRAKE", "")),
    data=shoal.Data(train="builtin:digits", cpus=0.5),
    batch=shoal.Batch(size=32, virtual_shards=8),
    budget=shoal.Budget(steps={steps}),
    numerics="exact",
    workers=shoal.Workers(min=1, max=2, resources={{"slot": 1}}),
    evaluation=shoal.Evaluation(every=None, samples=64),
    checkpoints=shoal.Checkpoints(every=20, export=False),
)
"""


class Runs:
    """A folder of runs, and the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.brake = folder, folder / "brake"
        self.recipe = folder / "recipe.py"
        self.recipe.write_text(RECIPE.format(steps=STEPS))

    def shoal(self, cluster: OwnCluster, *arguments: str, braked: bool = False) -> None:
        """A command that must succeed on `cluster`."""
        where = {**cluster.env, "RAY_ADDRESS": cluster.address}
        if braked:
            self.brake.touch()
            where["BRAKE"] = str(self.brake)
        command = [sys.executable, "-m", "shoal", *arguments, "--runs", str(self.folder / "runs"), "--quiet"]
        done = subprocess.run(command, env=where, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / name)

    def entries(self, name: str, kind: str) -> list[dict[str, Any]]:
        return [dict(e) for e in effective(read(self.run(name).ledger)[0]) if e["kind"] == kind]

    def steps(self, name: str) -> int:
        return len(self.entries(name, "commit")) if self.run(name).ledger.exists() else 0

    def state(self, name: str) -> str:
        """What the run came to; every step is there once."""
        assert [c["step"] for c in self.entries(name, "commit")] == list(range(1, STEPS + 1))
        latest = CheckpointStore(self.run(name).read()["checkpoint_uri"]).latest()
        assert latest is not None
        assert latest.step == STEPS
        return state_digest(CheckpointReader(latest.uri))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("head"))


@pytest.fixture
def redis() -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        lacking = "the loss of the GCS needs redis-server (apt-get install redis-server)"
        if "CI" in os.environ:
            pytest.fail(lacking)
        pytest.skip(lacking)
    server = Redis()
    yield server
    server.close()


@pytest.fixture
def clusters() -> Iterator[Callable[..., OwnCluster]]:
    """Start a cluster: a head, and two nodes with a place for a worker each."""
    started: list[OwnCluster] = []

    def start(environment: dict[str, str] | None = None) -> OwnCluster:
        started.append(cluster := OwnCluster(environment or {}))
        cluster.start_head(cpus=2)
        for _ in range(2):
            cluster.add_node('--resources={"slot": 1}', cpus=2)
        return cluster

    yield start
    for cluster in started:
        cluster.close()


def test_the_gcs_goes_and_comes_back_and_later_the_whole_head_goes(
    runs: Runs, redis: Redis, clusters: Callable[..., OwnCluster]
) -> None:
    """With Redis a run goes on through the first, and workers still come and go afterwards. When the head is lost with
    everything on it the run ends; on another cluster, without Redis, one command goes on from the last checkpoint."""
    cluster = clusters(redis.environment())
    runs.shoal(
        cluster, "train", str(runs.recipe), "--detach", "--if-detached", "continue", "--name", "kept", braked=True
    )
    until(lambda: any(len(v["members"]) == 2 for v in runs.entries("kept", "view")) and runs.steps("kept") > 0)

    start_gcs, before = cluster.kill_gcs(), runs.steps("kept")
    until(lambda: runs.steps("kept") > before + 5)
    start_gcs()
    views = len(runs.entries("kept", "view"))
    runs.shoal(cluster, "kill-worker", "kept", "w0")
    until(lambda: len(runs.entries("kept", "view")) > views and len(runs.entries("kept", "view")[-1]["members"]) == 2)
    lost = runs.entries("kept", "loss")
    assert [e["cause"] for e in lost] == ["ended on request"], "nobody but the one that was killed on request"
    assert len(runs.entries("kept", "start")) == 1
    until(lambda: runs.entries("kept", "checkpoint"))
    cluster.kill_head()
    cluster.close()

    other = clusters()
    assert 0 < runs.steps("kept") < STEPS
    runs.brake.unlink()
    runs.shoal(other, "resume", "kept")
    assert len(runs.entries("kept", "start")) == 2
    runs.shoal(other, "train", str(runs.recipe), "--name", "calm", "--set", "workers.max=1")
    assert runs.state("kept") == runs.state("calm"), "as if nothing had happened"
