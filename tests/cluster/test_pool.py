"""Warm workers that move between runs in place: nobody restarts, and no run sees that there was another one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

import shoal
from shoal.coordinator.status import Outcome
from shoal.errors import ConfigError
from shoal.launch.api import RunOptions, submit_job
from shoal.launch.control import attach
from shoal.launch.supervise import find
from shoal.pool import OpenPool, PoolSpec, open_pool
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from tests.support.conductor import members, until
from tests.support.faults import Fault, Faulty
from tests.support.runs import Listener, digits, ledger, losses, run

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

SHORT, LONG = 12, 1500


def job(steps: int = SHORT, task: shoal.Task | None = None, **changes: Any) -> shoal.Job:
    parts: dict[str, Any] = {
        "numerics": "exact",
        "budget": shoal.Budget(steps=steps),
        "workers": shoal.Workers(min=1, max=2),
        "checkpoints": shoal.Checkpoints(every=None, export=False),
    }
    return digits(task, **{**parts, **changes})


def result(outcome: Outcome) -> tuple[list[float], str]:
    """Losses of all steps, and the state that they came to."""
    assert outcome.status == "finished", outcome.error
    assert outcome.checkpoint is not None
    return losses(outcome), state_digest(CheckpointReader(outcome.checkpoint))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def pool(ray_cluster: None) -> Iterator[OpenPool]:
    with open_pool(PoolSpec(workers=2, numerics="exact", name="test")) as pool:
        yield pool


@pytest.fixture(scope="module")
def cold(runs: Path, ray_cluster: None) -> tuple[list[float], str]:
    """The short run in processes of its own."""
    return result(run(job(workers=shoal.Workers(min=1, max=1)), runs)[0])


def pids(run_id: str) -> set[int | None]:
    coordinator = find(run_id)
    return {m.pid for m in members(coordinator)} if coordinator is not None else set()


def test_workers_move_between_runs_in_place(runs: Path, pool: OpenPool, cold: tuple[list[float], str]) -> None:
    folder = RunFolder(runs / "long")
    submit_job(job(LONG), options=RunOptions(runs_dir=runs, name="long", pool=pool.name), display=Listener())
    until(lambda: len(pids("long")) == 2)
    both = pids("long")
    seen: set[int | None] = set()

    class Watch(Listener):
        def status(self, status: Any) -> None:
            seen.update(pids("short"))

    outcome, _ = run(job(workers=shoal.Workers(min=1, max=1)), runs, name="short", pool=pool.name, listener=Watch())
    assert result(outcome) == cold
    until(lambda: pids("long") == both)
    long = attach(folder, Listener())
    assert seen <= both
    assert result(long) == result(run(job(LONG, workers=shoal.Workers(min=1, max=1)), runs)[0])
    entries = ledger(long)
    changes = [e for e in entries if e["kind"] == "change"]
    assert [c["what"] for c in changes] == ["leave", "join"]
    assert all(c["steps_redone"] == 0 for c in changes)
    assert not [e for e in entries if e["kind"] == "loss"]


def test_a_worker_that_is_killed_while_it_is_lent_is_replaced(
    runs: Path, pool: OpenPool, cold: tuple[list[float], str], tmp_path: Path
) -> None:
    before = {w.id for w in pool.status().workers}
    task = Faulty(faults=(Fault("SIGKILL", 1, 5, "backward"),), folder=str(tmp_path))
    outcome, _ = run(job(task=task, workers=shoal.Workers(min=2, max=2)), runs, pool=pool.name)
    assert result(outcome) == cold
    assert len([e for e in ledger(outcome) if e["kind"] == "loss"]) == 1
    pool.warm_up(2)
    assert len({w.id for w in pool.status().workers} & before) == 1
    zero = shoal.Engine(name="zero", stage=3)
    again, _ = run(job(engine=zero, workers=shoal.Workers(min=2, max=2)), runs, pool=pool.name)
    assert result(again) == cold, "nothing of the broken view is left"


def test_what_a_pool_can_never_give_is_refused(runs: Path, pool: OpenPool) -> None:
    with pytest.raises(ConfigError, match=r"workers\.min=3 is more than the 2 workers of the pool 'test'"):
        run(job(workers=shoal.Workers(min=3, max=3)), runs, pool=pool.name)
    with pytest.raises(ConfigError, match=r"CPU: 2, not 1"):
        run(job(workers=shoal.Workers(min=1, max=1, cpus=2.0)), runs, pool=pool.name)
    with pytest.raises(ConfigError, match=r"no pool 'tset' in this cluster; did you mean 'test'"):
        run(job(), runs, pool="tset")


OWNER = """
import sys
from pathlib import Path
import ray, shoal
from shoal.launch.api import RunOptions, submit_job
from shoal.pool import PoolSpec, open_pool
from tests.cluster.test_pool import job
from tests.support.runs import Listener

with open_pool(PoolSpec(workers=1, numerics="exact", name="orphaned"), address=sys.argv[2]) as pool:
    submit_job(job(10**6), options=RunOptions(runs_dir=Path(sys.argv[1]), name="left", pool=pool.name),
               display=Listener())
    sys.stdin.read()
"""


def test_when_the_owner_is_gone_its_workers_go_and_their_run_ends_with_the_reason(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), address], stdin=subprocess.PIPE, start_new_session=True
    )
    folder = RunFolder(tmp_path / "left")
    until(lambda: folder.ledger.exists() and '"commit"' in folder.ledger.read_text())
    owner.kill()
    owner.wait()
    until(lambda: json.loads((folder.path / "run.json").read_text())["status"] == "failed")
    assert "the pool 'orphaned' is gone" in folder.read()["reason"]
    assert list(folder.checkpoints.glob("*/manifest.json")), "what was learned is kept"

    def left() -> list[str]:
        return [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if "orphaned" in a["name"]]

    until(lambda: not left())
