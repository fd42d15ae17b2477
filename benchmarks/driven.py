"""One view's words and commits without Ray: the coordinator's own parts, driven as fast as they go."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shoal.coordinator.book import Book
from shoal.coordinator.running import Running
from shoal.membership.account import Account
from shoal.membership.course import Course
from shoal.membership.leasing import Leasing, Plan
from shoal.membership.messages import Entered, Fresh, Progress, SnapshotKept, StepReport
from shoal.membership.stragglers import Paces
from shoal.membership.view import Lease, View
from shoal.positions import Positions
from shoal.worker.courier import Courier

DIGEST = "0123456789abcdef"
STEPS = 10**7


class Driven:
    """Couriers on the one side, what hears them on the other."""

    def __init__(self, members: int, folder: Path, *, sharded: bool = True) -> None:
        self.plan: Any = a_plan(members, folder, sharded=sharded)
        view = View(1, tuple(f"w{i}" for i in range(members)))
        self.leasing = Leasing(view, self.plan.leasing(Course(self.plan.positions)), 1)
        self.running = Running(self.plan, self.leasing, Fresh(), Paces(), cold=False)
        self.account = Account()
        self.account.begin(self.running.tally)
        self.book = Book(self.plan)
        self.book.open(revived=False)
        self.couriers = {m: Courier(m, 1, lambda _: self.running.grant("", 0, 0)) for m in view.members}
        self.leases: dict[str, deque[Lease]] = {m: deque() for m in view.members}
        self.now = 0.0
        for member, courier in self.couriers.items():
            courier.entered(Entered(0.1, 0.1))
            courier.progress = lambda: Progress(self.book.committed + 1, int(self.now * 10), "compute")
            self._word(member)

    def beat(self, steps: int) -> None:
        """Half a second: every member does up to so many of its leased steps, and says so."""
        self.now += 0.5
        for member, courier in self.couriers.items():
            waiting = self.leases[member]
            for _ in range(min(steps, len(waiting))):
                lease = waiting.popleft()
                count = lease.shards[1] - lease.shards[0]
                courier.report(
                    StepReport(
                        lease.step, ((count, 1.0),), 1.0, 1e-3, 0.25, compute_s=0.2, samples=DIGEST * count,
                        progress=lease.progress[1],
                    )
                )  # fmt: skip
                if lease.snapshot:
                    courier.report(SnapshotKept(lease.step, 1e-4, 1000))
            self._word(member)

    def _word(self, member: str) -> None:
        courier = self.couriers[member]
        reports = courier._collect()
        self.running.hear(reports, self.now)
        progressed = self.account.add(reports)
        self.book.commits(list(progressed.commits), {"seconds": self.now})
        courier._receive(self.running.grant(member, self.account.committed, 1))
        while not courier.leases.empty():
            lease = courier.leases.get_nowait()
            assert isinstance(lease, Lease)
            self.leases[member].append(lease)


def a_plan(members: int, folder: Path, *, sharded: bool) -> Any:
    """What these parts want to know of a run."""
    job = SimpleNamespace(
        workers=SimpleNamespace(silence_s=300.0),
        batch=SimpleNamespace(virtual_shards=members),
        failures=SimpleNamespace(snapshot_every=10),
        task=SimpleNamespace(tokens_per_sample=32),
    )
    leasing = lambda course: Plan(  # noqa: E731
        course=course, virtual_shards=members, evaluate_every=None, checkpoint_every=None, export=False,
        can_evaluate=False, snapshot=sharded,
    )  # fmt: skip
    return SimpleNamespace(
        folder=folder, record=None, start_from=None, run_id="driven", job_digest="", total_steps=STEPS, job=job,
        train=SimpleNamespace(samples=10**6, digest="", names=()), positions=Positions.even(members, STEPS),
        sharded=sharded, until_step=None, stretch_ended=lambda step: None, leasing=leasing,
    )  # fmt: skip
