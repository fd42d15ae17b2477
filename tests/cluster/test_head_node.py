"""The head's processes die: the GCS alone, the whole node, with Redis behind it and without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from shoal.state.store import CheckpointStore
from shoal.tracking.ledger import effective, read
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

    def shoal(self, cluster: OwnCluster | None, *arguments: str, braked: bool = False) -> None:
        """A command that must succeed; `cluster`: on that one."""
        where = {**cluster.env, "RAY_ADDRESS": cluster.address} if cluster is not None else dict(os.environ)
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


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> str:
    runs.shoal(None, "train", str(runs.recipe), "--name", "calm", "--set", "workers.max=1")
    return runs.state("calm")


@pytest.fixture
def redis() -> Iterator[Redis]:
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is missing: apt-get install redis-server")
        pytest.skip("needs redis-server: apt-get install redis-server")
    server = Redis()
    yield server
    server.close()


def until(what: str, found: Callable[[], Any], deadline_s: float = 150.0) -> None:
    end = time.monotonic() + deadline_s
    while not found():
        assert time.monotonic() < end, f"{what} did not come in {deadline_s:g}s"
        time.sleep(0.1)


def start(cluster: OwnCluster) -> None:
    cluster.start_head(cpus=1)
    cluster.add_node('--resources={"slot": 1}')
    cluster.add_node('--resources={"slot": 1}')


def test_with_redis_the_run_goes_on_through_the_loss_of_the_gcs_and_of_the_whole_head(
    runs: Runs, undisturbed: str, redis: Redis
) -> None:
    cluster = OwnCluster(redis.environment())
    try:
        start(cluster)
        detached = ("--detach", "--if-detached", "continue", "--name", "kept")
        runs.shoal(cluster, "train", str(runs.recipe), *detached, braked=True)
        until("a view of two", lambda: any(len(v["members"]) == 2 for v in runs.entries("kept", "view")))

        start_gcs, before = cluster.kill_gcs(), runs.steps("kept")
        until("steps without a GCS", lambda: runs.steps("kept") > before + 5)
        start_gcs()
        views = len(runs.entries("kept", "view"))
        runs.shoal(cluster, "kill-worker", "kept", "w0")
        until("a new worker in its place", lambda: len(runs.entries("kept", "view")) >= views + 2)

        cluster.kill_head()
        cluster.start_head(cpus=1)
        until("the coordinator's second life", lambda: runs.entries("kept", "revived"))
        before = runs.steps("kept")
        until("steps after it", lambda: runs.steps("kept") > before + 5)
        runs.brake.unlink()
        until("the end", lambda: runs.run("kept").read()["status"] == "finished")
        assert runs.state("kept") == undisturbed
        lost = runs.entries("kept", "loss")
        assert [e["cause"] for e in lost] == ["ended on request"], "nobody but the one that was killed on request"
    finally:
        cluster.close()


def test_without_redis_it_is_resumed_by_one_command(runs: Runs, undisturbed: str) -> None:
    cluster = OwnCluster()
    try:
        start(cluster)
        runs.shoal(cluster, "train", str(runs.recipe), "--detach", "--name", "resumed", braked=True)
        until("a checkpoint", lambda: runs.entries("resumed", "checkpoint"))
        cluster.kill_head()
    finally:
        cluster.close()
    runs.brake.unlink()
    runs.shoal(None, "resume", "resumed")
    assert runs.state("resumed") == undisturbed
    assert len(runs.entries("resumed", "start")) == 2
