"""Several hosts with addresses, raylets and clocks of their own: the network delays and loses packets, members lose
sight of each other, a host is cut off and comes back, one vanishes, one is to go. Two clocks are hours off throughout.

Whatever happens, in `exact` numerics the state is the one of the run that nothing happened to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shoal.audit.run import audit_run
from shoal.run_folder import RunFolder
from shoal.state.digest import state_digest
from shoal.state.reader import CheckpointReader
from shoal.tracking.ledger import effective, read
from tests.support.hosts import Hosts, hosts, missing, until

pytestmark = pytest.mark.cluster

HEAD, A, B, C = range(4)
SLOTS = (0, 1, 2, 1)
CLOCKS = {A: 5 * 3600.0, C: -3 * 3600.0}
STEPS = 600
RUN_S = 150.0
CHANGE_S = 60.0
"""A change takes some seconds here, ten more where silence has to be told from slowness."""

RECIPE = """
import shoal
from tests.support.paced import Paced

job = shoal.Job(
    name="hosts",
    task=Paced(brake={brake!r}),
    data=shoal.Data(train="builtin:digits", cpus=0.5),
    batch=shoal.Batch(size=32, virtual_shards=8),
    budget=shoal.Budget(steps={steps}),
    numerics="exact",
    optimizer=shoal.Optimizer(lr=1e-2),
    workers=shoal.Workers(min=1, max=4, cpus=1.0, resources={{"slot": 1}}),
    evaluation=shoal.Evaluation(every=None, samples=64),
    checkpoints=shoal.Checkpoints(every=None, export=False),
    failures=shoal.Failures(snapshot_every=3),
)
"""


class Run:
    """A run that is being trained from the head's host; slowly, until it is let go."""

    def __init__(self, cluster: Hosts, folder: Path, name: str, *settings: str) -> None:
        self._brake, recipe = folder / f"{name}-brake", folder / f"recipe_{name}.py"
        self._brake.touch()
        recipe.write_text(RECIPE.format(brake=str(self._brake), steps=STEPS))
        self.folder, self._log = RunFolder(folder / "runs" / name), folder / f"{name}.log"
        command = [sys.executable, "-m", "shoal", "train", str(recipe), "--address", cluster.address, "--name", name]
        options = [word for setting in settings for word in ("--set", setting)]
        command += ["--runs", str(folder / "runs"), "--json", *options]
        self._process = cluster.spawn(HEAD, command, output=self._log)

    def entries(self, kind: str = "") -> list[dict[str, Any]]:
        """What its ledger says."""
        if not self.folder.ledger.exists():
            return []
        return [dict(e) for e in read(self.folder.ledger)[0] if kind in ("", e["kind"])]

    @property
    def step(self) -> int:
        """The last one that is committed."""
        return max((e["step"] for e in self.entries("commit")), default=0)

    def until(self, condition: Callable[[], bool], what: str, within: float = CHANGE_S) -> None:
        """Wait for what comes while it goes on."""

        def come() -> bool:
            assert self._process.poll() in (None, 0), self.said()
            return condition()

        until(come, within, f"{what}, with the ledger at {[(e['kind'], e) for e in self.entries()][-3:]}:")

    def gets_on(self, steps: int = 5) -> None:
        """Wait until so many more steps are committed."""
        goal = self.step + steps
        self.until(lambda: self.step >= goal, f"step {goal}", RUN_S)

    def has(self, *addresses: str) -> bool:
        """Whether its last view has members on these hosts, as often as they are named, and no others."""
        views = self.entries("view")
        return bool(views) and sorted(m["address"] for m in views[-1]["members"]) == sorted(addresses)

    def said(self) -> str:
        return self._log.read_text()[-3000:]

    def ends(self) -> str:
        """Let it go and wait for its end: every step and sample once, one view after another. The state's SHA-256."""
        self._brake.unlink()
        try:
            assert self._process.wait(RUN_S) == 0, self.said()
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run hangs:\n{self.said()}") from None
        commits = [e for e in effective(self.entries()) if e["kind"] == "commit"]
        assert [c["step"] for c in commits] == list(range(1, STEPS + 1))
        assert len(self.entries("commit")) == STEPS, "no step is committed twice"
        verdict = audit_run(self.folder)
        assert verdict.clean, verdict
        self._one_view_at_a_time()
        (last,) = [e["uri"] for e in self.entries("checkpoint")][-1:]
        return state_digest(CheckpointReader(last))

    @property
    def losses(self) -> list[dict[str, Any]]:
        """Of members; a newcomer that is refused was none."""
        return [e for e in self.entries("loss") if e["cause"] != "worker refused"]

    def _one_view_at_a_time(self) -> None:
        views = self.entries("view")
        assert [v["number"] for v in views] == list(range(1, len(views) + 1))
        current, lost = 0, set[str]()
        for entry in self.entries():
            if entry["kind"] == "view":
                current = entry["number"]
                assert lost.isdisjoint(m["id"] for m in entry["members"]), "who was left out came back"
            elif entry["kind"] == "loss":
                lost.update(entry["members"])
            elif entry["kind"] == "commit":
                assert entry["view"] == current, "a view that is over was heard"
        times = [e["time"] for e in self.entries()]
        assert times == sorted(times), "one clock writes the ledger"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def cluster(no_cluster: None, place: Path) -> Iterator[Hosts]:
    lacking = missing()
    if lacking is not None:
        if "CI" in os.environ:
            pytest.fail(f"these tests need hosts of their own: {lacking}")
        pytest.skip(lacking)
    with hosts(SLOTS, place, CLOCKS) as found:
        yield found


@pytest.fixture(scope="module")
def calm(cluster: Hosts, place: Path) -> Run:
    """The run that nothing happens to."""
    run = Run(cluster, place, "calm", "workers.min=4")
    run.gets_on()
    return run


@pytest.fixture(scope="module")
def right(calm: Run) -> str:
    return calm.ends()


def test_nothing_happens(cluster: Hosts, calm: Run, right: str) -> None:
    """And yet: four workers on three hosts, nothing between them but a network, two clocks hours off."""
    now = {
        h: float(cluster.run(h, [sys.executable, "-c", "import time; print(time.time())"]).stdout) for h in (A, B, C)
    }
    assert now[A] - now[B] > 4 * 3600
    assert now[B] - now[C] > 2 * 3600
    assert right
    (view,) = calm.entries("view")
    assert calm.has(*(cluster.addresses[i] for i in (A, B, B, C))), view


def test_a_network_that_fails_in_every_way_and_heals(cluster: Hosts, place: Path, right: str) -> None:
    a, b, c = (cluster.addresses[i] for i in (A, B, C))
    run = Run(cluster, place, "network", "workers.min=2")
    run.until(lambda: run.has(a, b, b, c), "all four", RUN_S)

    cluster.hinder(delay_s=0.02, loss=0.02)
    run.gets_on(10)
    cluster.heal()
    assert run.has(a, b, b, c), "delay and loss cost time only"
    assert not run.losses

    cluster.cut((A, B), (A, C))  # all of them still reach the head
    run.until(lambda: run.has(b, b, c), "a view of those that reach each other")
    (loss,) = run.losses
    assert "do not reach each other" in loss["reason"]
    run.gets_on()
    cluster.heal()
    run.until(lambda: run.has(a, b, b, c), "a new worker where the lost one was")

    before = run_processes(cluster, B)
    assert len(before) == 2
    cluster.isolate(B)
    run.until(lambda: run.has(a, c), "a view without the host that is cut off")
    run.gets_on()
    cluster.heal()
    until(lambda: not before & run_processes(cluster, B), CHANGE_S, "the end of those that were cut off")
    assert run.ends() == right
    assert {v["source"] for v in run.entries("view")[1:]} == {"memory"}, "nobody looked at a disk"


def test_a_host_vanishes_with_two_members_and_one_is_told_to_go(cluster: Hosts, place: Path, right: str) -> None:
    """Sharded: the lost parts lie with buddies on other hosts. The one that goes says when by its clock, hours off."""
    a, b, c = (cluster.addresses[i] for i in (A, B, C))
    until(lambda: not cluster.has_ray(B), CHANGE_S, "the end of the raylet that was declared dead")
    cluster.start_ray(B)
    run = Run(cluster, place, "vanishes", "workers.min=1", "engine.name=zero", "engine.stage=2")
    run.until(lambda: run.has(a, b, b, c), "all four", RUN_S)
    run.gets_on()
    on_b = {m["id"] for m in run.entries("view")[-1]["members"] if m["address"] == b}
    cluster.vanish(B)
    run.until(lambda: run.has(a, c), "a view of those that are left")
    run.gets_on()
    said = cluster.run(A, [sys.executable, "-m", "shoal", "drain-node", "--deadline", "25"])
    assert said.returncode == 0, said.stderr
    run.until(lambda: run.has(c), "a view without the host that goes")
    assert run.ends() == right
    assert {m for loss in run.losses for m in loss["members"]} == on_b, "whoever was there, and nobody else"
    assert {v["source"] for v in run.entries("view")[1:]} == {"memory"}


def run_processes(cluster: Hosts, host: int) -> set[int]:
    """Workers on `host`."""
    return {pid for pid in cluster.pids(host) if _title(pid).startswith("ray::Worker")}


def _title(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
