"""The member's two threads: nothing is lost, nothing is reordered, and an error reaches the training loop."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.membership.leasing import End
from shoal.membership.messages import Grant, Reports, StepReport
from shoal.membership.view import Lease
from shoal.worker.courier import Courier
from shoal.worker.loader import Loader

pytestmark = pytest.mark.unit

END = End(step=6, evaluate=False, checkpoint=False, export=False, reason="done")


def lease(step: int) -> Lease:
    return Lease(view=1, step=step, shards=(0, 2), start=step * 4, stop=step * 4 + 4)


def report(step: int) -> StepReport:
    return StepReport(step=step, losses=((1, 0.5),), grad_norm=1.0, lr=0.1, step_s=0.1)


class Coordinator:
    """Grants two leases at each word, six in all."""

    def __init__(self) -> None:
        self.heard: list[Reports] = []
        self.given = 0

    def sync(self, reports: Reports) -> Grant:
        self.heard.append(reports)
        first, self.given = self.given + 1, min(self.given + 2, 6)
        leases = tuple(lease(s) for s in range(first, self.given + 1))
        return Grant(leases, END if self.given == 6 else None)


def samples(ranges: list[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
    return [{"x": np.arange(a, b)} for a, b in ranges]


def test_leases_come_through_both_threads_in_order_and_end() -> None:
    coordinator = Coordinator()
    courier = Courier("w0", 1, coordinator.sync, list)
    loader = Loader(courier.leases, samples)
    courier.start()
    loader.start()
    steps = []
    while (work := loader.next()) is not None:
        assert work.samples["x"].tolist() == list(range(work.lease.start, work.lease.stop))
        steps.append(work.lease.step)
        courier.report(report(work.lease.step))
    assert courier.end == END
    courier.close()
    assert steps == [1, 2, 3, 4, 5, 6]
    # Everything reported before close() has been said, once and in order.
    assert [r.step for word in coordinator.heard for r in word.steps] == steps


def test_a_lost_coordinator_reaches_the_training_loop() -> None:
    def sync(_: Reports) -> Grant:
        raise ConnectionError("gone")

    courier = Courier("w0", 1, sync, list)
    loader = Loader(courier.leases, samples)
    courier.start()
    loader.start()
    with pytest.raises(ConnectionError, match="gone"):
        loader.next()
    courier.close()


def test_a_failing_read_reaches_the_training_loop_after_what_was_ready() -> None:
    def read(ranges: list[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
        if any(a > 8 for a, _ in ranges):
            raise OSError("disk gone")
        return samples(ranges)

    coordinator = Coordinator()
    courier = Courier("w0", 1, coordinator.sync, list)
    loader = Loader(courier.leases, read)
    courier.start()
    loader.start()

    def drain() -> None:
        while (work := loader.next()) is not None:
            done.append(work.lease.step)

    done: list[int] = []
    with pytest.raises(OSError, match="disk gone"):
        drain()
    assert done == [1, 2][: len(done)]
    courier.close()
