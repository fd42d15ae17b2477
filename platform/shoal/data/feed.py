"""The feed: turns positions of the sample stream into slices of blocks. It knows nothing of how many workers there are.

One actor without CPUs of its own. It pumps blocks from Ray Data, which reads on reserved CPUs. Blocks stay in the
object store: only their references pass through here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoal import ray_compat
from shoal.data.catalog import Catalog
from shoal.data.order import Order
from shoal.data.pipeline import check_window, stream_blocks
from shoal.data.reserving import Reservation
from shoal.data.stream import Located, Stream, StreamStatus, stream_names
from shoal.data.training import TrainingData
from shoal.errors import CapacityError, DataError, ShoalError, TaskError
from shoal.job.spec import Data
from shoal.orphans import end_with

TRAIN, VALIDATION = "train", "validation"

_VALIDATION_WINDOW = 1024
FAR = 1 << 52
"""A position that no run reaches."""
_START_S = 240.0
"""What a process may take to start."""
_CLOSE_S = 2.0
"""For threads that are in the middle of a block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedPlan:
    """All that a feed needs to know."""

    train: TrainingData
    validation: Catalog | None
    data: Data
    seed: int
    start: int
    """Position of the first training sample: any cursor."""
    stop: int | None
    """End of the training stream: the budget's end; None: nobody knows it yet."""
    block: int
    """Samples in a block of a mixture: the batch."""
    validation_samples: int
    reservation: Reservation
    """CPUs to read on; not the feed's to give back."""
    node_id: str | None = None
    """Node on which the feed runs."""
    owner: str | None = None
    """Name of the actor that the feed serves: it outlives a restart of it, and ends with it. None: it ends with the
    process that started it."""


class Feed:
    """Hosts the streams `train` and `validation` of one plan at a time. Runs as an async actor: see `start_feed`."""

    def __init__(self, owner: str | None = None) -> None:
        """`owner`: name of the actor that it lives for; None: it lives as long as the process that started it."""
        ray_compat.quiet_data_process()
        ray_compat.yield_to_training()
        self._plan: FeedPlan | None = None
        self._reading: Reading | None = None
        if owner is not None:
            end_with(owner, "shoal", also=lambda: self._plan.reservation.group if self._plan is not None else None)

    async def open(self, plan: FeedPlan) -> None:
        """Begin to read. What was read before, of whatever plan, is dropped."""
        await self.close()
        self._plan, self._reading = plan, await asyncio.to_thread(Reading, plan)
        self._reading.begin()

    async def locate(self, stream: str, ranges: Sequence[tuple[int, int]]) -> list[Located]:
        """The blocks that hold the ranges of positions, each once, in order; waits until they have been produced.

        A range may be located again (a step that was rolled back) until it is released. Raises DataError if the
        pipeline failed, or for positions outside the stream.
        """
        if self._reading is None:
            raise DataError(f"the {stream} stream is closed")
        return await self._reading.stream(stream).locate(ranges)

    async def release(self, stream: str, position: int) -> None:
        """Let go of the blocks wholly before `position`: those steps can never be rolled back any more."""
        if self._reading is not None:
            self._reading.release(stream, position)

    async def status(self) -> dict[str, StreamStatus]:
        """Where each stream stands."""
        return self._reading.status() if self._reading is not None else {}

    async def close(self) -> None:
        """Stop reading, drop all blocks. Can be called twice, and the feed opened again."""
        reading, self._reading = self._reading, None
        if reading is not None:
            await asyncio.to_thread(reading.close)


class Reading:
    """The streams of one plan, and the threads that fill them."""

    def __init__(self, plan: FeedPlan) -> None:
        self._plan = plan
        self._stop = FAR if plan.stop is None else plan.stop
        self._mixture = plan.train.mixture(plan.data, seed=plan.seed, block=plan.block, total=self._stop)
        self._names = stream_names(TRAIN, len(plan.train.catalogs))
        self._reads: dict[str, tuple[Catalog, Order]] = {}
        self._streams: dict[str, Stream] = {}
        if plan.validation is not None and plan.validation_samples:
            stop = min(plan.validation_samples, plan.validation.samples)
            order = plan.validation.order(seed=0, shuffle=False, window=_VALIDATION_WINDOW)
            self._reads[VALIDATION] = plan.validation, order
            self._streams[VALIDATION] = Stream(VALIDATION, first=0, start=0, stop=stop, limit=None)
        self._validation_begun = threading.Lock()
        self._pumps: list[threading.Thread] = []
        self._lay_out()

    def begin(self) -> None:
        """Start the threads."""
        for name in self._names:
            if self._streams[name].start < self._streams[name].stop:
                self._pump(name)

    def stream(self, name: str) -> Stream:
        """Raises DataError if there is none of that name."""
        if name not in self._streams:
            raise DataError(f"this feed has no {name} stream; it has {', '.join(self._streams)}")
        if name == VALIDATION:
            self._begin_validation()
        return self._streams[name]

    def release(self, stream: str, position: int) -> None:
        """See `Feed.release`."""
        if stream != TRAIN or self._mixture is None:
            self._streams[stream].release(position)
            return
        for name, used in zip(self._names, self._mixture.used(position), strict=True):
            self._streams[name].release(used)

    def status(self) -> dict[str, StreamStatus]:
        """See `Feed.status`."""
        return {name: stream.status() for name, stream in self._streams.items()}

    def close(self) -> None:
        """Drop all blocks; the threads end by themselves, most of them at once."""
        for stream in self._streams.values():
            stream.close()
        deadline = time.monotonic() + _CLOSE_S
        for pump in self._pumps:
            pump.join(max(0.0, deadline - time.monotonic()))

    def _lay_out(self) -> None:
        """The sources' orders and streams."""
        plan, mixture = self._plan, self._mixture
        orders = plan.train.orders(plan.data, mixture, seed=plan.seed, total=self._stop)
        if mixture is None:
            spans = [(plan.start, self._stop)]
        elif plan.stop is None:
            spans = [(used, FAR) for used in mixture.used(plan.start)]
        else:
            spans = mixture.ranges(plan.start, plan.stop)
        for name, catalog, order, (start, stop) in zip(self._names, plan.train.catalogs, orders, spans, strict=True):
            self._reads[name] = catalog, order
            # Ray Data counts every block that is still referenced, those that are held here too. Half of the memory for
            # each leaves it room to read on; with all of it held here, it would read one task at a time.
            first = order.window_at(start).start
            self._streams[name] = Stream(name, first=first, start=start, stop=stop, limit=self._ahead // 2)

    @property
    def _ahead(self) -> int:
        """Bytes that one source may have waiting."""
        return (self._plan.data.ahead_mb << 20) // len(self._names)

    def _begin_validation(self) -> None:
        """Once: with the first training block there, or when somebody asks."""
        if VALIDATION in self._streams and self._validation_begun.acquire(blocking=False):
            self._pump(VALIDATION)

    def _pump(self, name: str) -> None:
        pump = threading.Thread(target=self._run, args=(name,), name=f"shoal-pump-{name}", daemon=True)
        self._pumps.append(pump)
        pump.start()

    def _run(self, name: str) -> None:
        stream = self._streams[name]
        catalog, order = self._reads[name]
        try:
            produced = stream_blocks(
                catalog,
                order,
                stream.start,
                stream.stop,
                reservation=self._plan.reservation,
                held_bytes=self._ahead,
                wanted=stream.wanted,
            )
            for block in produced:
                if not stream.put(block.ref, block.rows, block.nbytes):
                    return
                if name != VALIDATION:
                    self._begin_validation()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            cause = ray_compat.find_cause(error, ShoalError)
            said = f"reading {catalog.uri} failed: {_last_line(error)}"
            if cause is not None:
                said = str(cause).partition("\nFailed to ")[0]  # what Ray Data appends
            stream.fail(TaskError(said) if isinstance(cause, TaskError) else DataError(said))


def feed_name(owner: str) -> str:
    """Name of the feed's actor in the namespace `shoal`."""
    return f"{owner}-feed"


def new_feed(owner: str | None, node_id: str | None) -> Any:
    """A feed's process, on the node `node_id`, that reads nothing yet; returns its handle at once. It ends with the
    process that started it, or with the actor named `owner`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 1000}
    if node_id is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    if owner is not None:
        options |= {"name": feed_name(owner), "namespace": "shoal", "lifetime": "detached"}
    return ray.remote(Feed).options(**options).remote(owner)


def start_feed(plan: FeedPlan, feed: Any = None) -> Any:
    """Let `feed` (None: a new one) read by `plan`; returns its handle once it reads.

    Positions [start, stop) of the training stream will be served (of a mixture: the sources' streams, `train/0` and so
    on, as far as `Mixture.ranges(start, stop)` says), and the first `validation_samples` samples of `validation` in
    file order. Raises DataError for data that cannot be read in windows, CapacityError if the process does not start.
    """
    import ray

    for catalog in plan.train.catalogs:
        check_window(catalog, plan.data.window)
    if plan.validation is not None:
        check_window(plan.validation, _VALIDATION_WINDOW)
    feed = feed if feed is not None else new_feed(plan.owner, plan.node_id)
    try:
        ray.get(feed.open.remote(plan), timeout=_START_S)
    except ray.exceptions.GetTimeoutError:
        ray.kill(feed)
        raise CapacityError(
            f"the feed's process did not start within {_START_S:g} s; the machine is overloaded, or "
            f"Ray cannot start processes on it: look into Ray's logs"
        ) from None
    except ray.exceptions.RayTaskError as error:
        cause = ray_compat.find_cause(error, ShoalError)
        ray.kill(feed)
        if cause is not None:
            raise cause from None
        raise
    return feed


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
