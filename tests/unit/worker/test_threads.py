"""The member's threads: nothing is lost, nothing is reordered, and an error reaches the training loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from shoal.errors import WorkerLost
from shoal.membership.leasing import End
from shoal.membership.messages import EvaluationReport, Grant, Reports, SnapshotKept, StepReport
from shoal.membership.view import Lease
from shoal.worker.courier import Courier
from shoal.worker.loader import Loader

pytestmark = pytest.mark.unit

END = End(step=6, evaluate=False, checkpoint=False, export=False, reason="done")
DEADLINE_S = 20.0


def lease(step: int) -> Lease:
    return Lease(view=1, step=step, shards=(0, 2), start=step * 4, stop=step * 4 + 4)


def report(step: int) -> StepReport:
    return StepReport(step=step, losses=((1, 0.5),), grad_norm=1.0, lr=0.1, step_s=0.1)


class Coordinator:
    """Grants two leases at each word, six in all; fails as often as it is told to; commits what it is told to."""

    def __init__(self) -> None:
        self.heard: list[Reports] = []
        self.given = self.failures = self.committed = self.incarnation = 0
        self.called = threading.Condition()

    def sync(self, reports: Reports) -> Grant:
        with self.called:
            self.called.notify_all()
            if self.failures:
                self.failures -= 1
                raise ConnectionError("no coordinator")
            self.heard.append(reports)
            first, self.given = self.given + 1, min(self.given + 2, 6)
            leases = tuple(lease(s) for s in range(first, self.given + 1))
            return Grant(leases, END if self.given == 6 else None, self.committed, self.incarnation)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.called:
            assert self.called.wait_for(condition, DEADLINE_S)


def samples(ranges: list[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.arange(a, b)} for a, b in ranges]


def test_leases_come_through_both_threads_in_order_and_end() -> None:
    coordinator = Coordinator()
    courier = Courier("w0", 1, coordinator.sync)
    loader = Loader(courier.leases, samples)
    courier.start()
    loader.start()
    steps = []
    while (work := loader.next()) is not None:
        assert work.samples["x"].tolist() == list(range(work.lease.start, work.lease.stop))
        assert len(work.digests) == 2 * 16
        steps.append(work.lease.step)
        courier.report(report(work.lease.step), urgent=True)
    assert courier.end == END
    left = courier.close()
    assert steps == [1, 2, 3, 4, 5, 6]
    # Nothing is committed, so everything is said again at the end, once and in order.
    assert [r.step for r in left.steps] == steps


def test_what_is_committed_is_forgotten_and_the_rest_is_said_again_to_a_new_coordinator() -> None:
    coordinator = Coordinator()
    courier = Courier("w0", 1, coordinator.sync)
    for step in (1, 2, 3):
        courier.report(report(step))
    courier.report(SnapshotKept(2))
    courier.report(EvaluationReport(1, 4, {}, 0.1))
    coordinator.committed = 2
    courier.start()
    coordinator.wait_for(lambda: len(coordinator.heard) >= 2)
    assert [r.step for r in coordinator.heard[0].steps] == [1, 2, 3]
    assert coordinator.heard[1].steps == ()
    coordinator.incarnation = 1
    courier.report(report(4), urgent=True)
    coordinator.wait_for(lambda: any(h.evaluations for h in coordinator.heard[1:]))
    again = next(h for h in coordinator.heard[1:] if h.evaluations)
    assert [r.step for r in again.steps] == [3, 4]
    assert again.snapshots == ()
    courier.close()


def test_a_coordinator_that_cannot_be_reached_is_tried_again() -> None:
    coordinator = Coordinator()
    coordinator.failures = 3
    courier = Courier("w0", 1, coordinator.sync)
    courier.report(report(1))
    courier.start()
    coordinator.wait_for(lambda: bool(coordinator.heard))
    assert [r.step for r in coordinator.heard[0].steps] == [1]
    courier.close()


def test_a_coordinator_that_stays_away_ends_the_loop_with_its_error() -> None:
    coordinator = Coordinator()
    coordinator.failures = 10**9
    courier = Courier("w0", 1, coordinator.sync, patience_s=0.2)
    loader = Loader(courier.leases, samples)
    courier.start()
    loader.start()
    with pytest.raises(ConnectionError, match="no coordinator"):
        loader.next()


def test_a_member_of_a_view_that_is_over_is_told_to_leave_it() -> None:
    """It may have been out of reach while the run went on without it."""
    words, left = [], threading.Event()

    def sync(reports: Reports) -> Grant:
        words.append(reports)
        return Grant(over=len(words) == 2, committed=1)

    courier = Courier("w0", 1, sync)
    loader = Loader(courier.leases, samples)
    courier.leave = lambda: (loader.close(WorkerLost("the view was cut")), left.set())[-1]
    loader.start()
    courier.start()
    with pytest.raises(WorkerLost, match="cut"):
        loader.next()
    assert left.wait(DEADLINE_S)
    courier.close()
    assert len(words) == 2, "it has nothing more to say there"


def test_an_error_of_the_feed_reaches_the_loop() -> None:
    coordinator = Coordinator()
    courier = Courier("w0", 1, coordinator.sync)

    def fail(_: object) -> list[dict[str, np.ndarray]]:
        raise ValueError("bad block")

    loader = Loader(courier.leases, fail)
    courier.start()
    loader.start()
    with pytest.raises(ValueError, match="bad block"):
        loader.next()
    courier.close()


def test_a_loader_that_is_closed_wakes_who_waits() -> None:
    blocked = threading.Event()
    loader = Loader(Courier("w0", 1, Coordinator().sync).leases, samples)
    loader.start()
    found: list[BaseException] = []

    def wait() -> None:
        blocked.set()
        try:
            loader.next()
        except RuntimeError as error:
            found.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert blocked.wait(DEADLINE_S)
    loader.close(RuntimeError("cut"))
    waiter.join(DEADLINE_S)
    assert [str(e) for e in found] == ["cut"]
