"""The feed against Ray's own `streaming_split`: rows and megabytes per second that reach the consumers.

Same Parquet, same windows permuted in the same order, the same CPUs for reading, the same batches; arms interleaved.
Four arms per number of consumers:

- feed: Shoal's. One pipeline, slices by position; knows nothing of the number of consumers.
- split: `streaming_split(n, equal=True)` behind the very same window pipeline.
- parquet: `streaming_split(n, equal=True)` behind `ray.data.read_parquet`, in file order: no shuffling at all, which is
  less work; shown as a ceiling.
- pyarrow: one process that reads the files with plain `pyarrow`, in file order, and touches every batch itself, with no
  shuffling, no second process and no object store: the limit of what one CPU can read.

Rates count from the call that starts reading to the last batch of the last consumer, start-up included. The rate after
the first batch stands apart; it flatters an arm that had read far ahead by then.

    python benchmarks/feed.py [--n 5] [--consumers 1 2 4 8] [--megabytes 512] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.common import interleave, machine, ratios, spread, write_result
from shoal import ray_compat
from shoal.data.catalog import Catalog, read_catalog
from shoal.data.columns import to_numpy
from shoal.data.feed import FeedPlan, start_feed
from shoal.data.order import permutation
from shoal.data.pipeline import plans, window_source
from shoal.data.reader import SliceReader
from shoal.data.reserving import reserve
from shoal.data.shards import ShardWriter
from shoal.data.training import TrainingData
from shoal.job.spec import Data

BLOCK, BATCH, AHEAD_STEPS = 1024, 256, 4
WINDOW, AHEAD_MB = 8192, 64
RELEASE_EVERY = 8
"""Calls between two reports of what is done: about one per block. At 700 steps a second they would be all the work."""
WAIT_S = 300.0

actor: Any = ray.remote(num_cpus=0)


@dataclass(frozen=True)
class Measured:
    """One run of one arm."""

    rows_per_s: float
    first_batch_s: float
    after_first_per_s: float
    rows: int


@dataclass
class Clock:
    """When a consumer saw its first batch and its last one."""

    rows: int = 0
    first: float = 0.0
    last: float = 0.0

    def count(self, rows: int) -> None:
        self.last = time.time()
        self.first = self.first or self.last
        self.rows += rows


class Consumer:
    """Takes its share of every step and touches it; returns its clock."""

    def ready(self) -> None:
        return None

    def feed(self, feed: Any, commits: Any, place: tuple[int, int], samples: int) -> Clock:
        rank, size = place
        reader = SliceReader(feed)
        share = BATCH // size
        starts = range(0, samples - BATCH + 1, BATCH)
        calls = [
            [(s + rank * share, s + (rank + 1) * share) for s in starts[i : i + AHEAD_STEPS]]
            for i in range(0, len(starts), AHEAD_STEPS)
        ]
        clock = Clock()
        with ThreadPoolExecutor(1) as ahead:  # as the training loop does: the next steps come while these are used
            coming = ahead.submit(reader.read, "train", calls[0])
            for i in range(len(calls)):
                batches = coming.result()
                if i + 1 < len(calls):
                    coming = ahead.submit(reader.read, "train", calls[i + 1])
                for batch in batches:
                    clock.count(touch(batch))
                if i % RELEASE_EVERY == RELEASE_EVERY - 1:
                    commits.done.remote(rank, starts[min((i + 1) * AHEAD_STEPS, len(starts)) - 1])
        return clock

    def split(self, iterator: Any, size: int) -> Clock:
        clock = Clock()
        for batch in iterator.iter_batches(
            batch_size=BATCH // size, batch_format="pyarrow", prefetch_batches=AHEAD_STEPS, drop_last=True
        ):
            tokens = to_numpy("tokens", batch["tokens"])  # Ray's own "numpy" format makes objects of lists
            clock.count(touch({"tokens": tokens if tokens.flags.writeable else tokens.copy()}))
        return clock

    def alone(self, files: list[str]) -> Clock:
        clock = Clock()
        for name in files:
            for batch in pq.ParquetFile(name).iter_batches(BATCH, columns=["tokens"], use_threads=False):
                clock.count(touch({"tokens": to_numpy("tokens", pa.chunked_array([batch.column("tokens")]))}))
        return clock


class Commits:
    """Releases what all consumers are done with, as the coordinator does."""

    def __init__(self, feed: Any, size: int) -> None:
        self._feed, self._done = feed, [0] * size

    def done(self, rank: int, position: int) -> None:
        self._done[rank] = position
        self._feed.release.remote("train", min(self._done))


def touch(batch: dict[str, np.ndarray]) -> int:
    """What any consumer does first: read the memory once."""
    tokens = batch["tokens"]
    return len(tokens) if int(tokens[:, ::64].sum()) >= 0 else 0


def through_feed(catalog: Catalog, consumers: list[Any]) -> Measured:
    data = Data(train=catalog.uri, window=WINDOW, ahead_mb=AHEAD_MB, cpus=1.0)
    begun = time.time()
    train = TrainingData.of(catalog)
    reservation = reserve(data.cpus)
    feed = start_feed(
        FeedPlan(
            train=train,
            validation=None,
            data=data,
            seed=1,
            start=0,
            stop=catalog.samples,
            block=1,
            validation_samples=0,
            reservation=reservation,
        )
    )
    size = len(consumers)
    commits = actor(Commits).remote(feed, size)
    done = [c.feed.remote(feed, commits, (rank, size), catalog.samples) for rank, c in enumerate(consumers)]
    try:
        return measured(begun, ray.get(done, timeout=WAIT_S))
    finally:
        ray.get(feed.close.remote())
        ray.kill(feed)
        ray.kill(commits)
        reservation.give_back()


def alone(catalog: Catalog, consumers: list[Any]) -> Measured:
    begun = time.time()
    return measured(begun, [ray.get(consumers[0].alone.remote(list(catalog.files)), timeout=WAIT_S)])


def through_split(catalog: Catalog, consumers: list[Any], *, shuffled: bool) -> Measured:
    begun = time.time()
    if shuffled:
        tasks = list(plans(catalog, catalog.order(seed=1, window=WINDOW), 0, catalog.samples))
        dataset = ray_compat.read_in_order(
            window_source(catalog, tasks, seed=1),
            tasks=len(tasks),
            cpus=1.0,
            task_cpus=1.0,
            group=None,
            held_bytes=AHEAD_MB << 20,
        )
    else:
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ray.data.ExecutionResources.for_limits(
            cpu=1.0, object_store_memory=AHEAD_MB << 20
        )
        with ray.data.DataContext.current(context):
            dataset = ray.data.read_parquet(list(catalog.files))
    iterators = dataset.streaming_split(len(consumers), equal=True)
    done = [c.split.remote(it, len(consumers)) for c, it in zip(consumers, iterators, strict=True)]
    return measured(begun, ray.get(done, timeout=WAIT_S))


def measured(begun: float, clocks: list[Clock]) -> Measured:
    rows, first, last = sum(c.rows for c in clocks), min(c.first for c in clocks), max(c.last for c in clocks)
    return Measured(
        rows_per_s=rows / (last - begun),
        first_batch_s=first - begun,
        after_first_per_s=rows / (last - first),
        rows=rows,
    )


def make_data(folder: Path, megabytes: int) -> Catalog:
    """Blocks of bytes that compress about as text does."""
    writer = ShardWriter(folder, {"block": BLOCK}, shard_bytes=16 << 20)
    text = np.frombuffer(Path(statistics.__file__).read_bytes(), np.uint8)
    for i in range(megabytes):
        shift = int(permutation(i, len(text))[0])
        writer.add({"tokens": np.resize(np.roll(text, shift), (1024, BLOCK))})
    writer.close()
    return read_catalog(str(folder), ["tokens"])


def compare(catalog: Catalog, size: int, n: int) -> dict[str, list[Measured]]:
    consumers = [actor(Consumer).remote() for _ in range(size)]
    ray.get([c.ready.remote() for c in consumers])
    arms = {
        "feed": partial(through_feed, catalog, consumers),
        "split": partial(through_split, catalog, consumers, shuffled=True),
        "parquet": partial(through_split, catalog, consumers, shuffled=False),
        "pyarrow": partial(alone, catalog, consumers),
    }
    for arm in arms.values():
        arm()  # the first execution starts Ray Data's own helpers
    found = interleave(
        arms, n, lambda arm, m: print(f"  {size} consumers, {arm}: {m.rows_per_s:,.0f} rows/s", flush=True)
    )
    for consumer in consumers:
        ray.kill(consumer)
    return found


def table(found: dict[int, dict[str, list[Measured]]], catalog: Catalog) -> str:
    lines = [
        "# The feed against `streaming_split`",
        "",
        f"{catalog.samples:,} samples of {BLOCK} bytes in row groups of 1,024; batch {BATCH}, windows of {WINDOW}, one "
        f"CPU for reading. Median (least-most, n). {machine()}.",
        "",
        "| consumers | arm | rows/s | MB/s | first batch, s | feed / arm, pair by pair | the same, after first |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, arms in found.items():
        ours = [m.rows_per_s for m in arms["feed"]]
        ours_after = [m.after_first_per_s for m in arms["feed"]]
        for arm, runs in arms.items():
            rows = [m.rows_per_s for m in runs]
            after = [m.after_first_per_s for m in runs]
            lines.append(
                f"| {size} | {arm} | {spread(rows, 0)} | {statistics.median(rows) * BLOCK / 1e6:.1f} | "
                f"{spread([m.first_batch_s for m in runs], 2)} | {spread(ratios(ours, rows), 2)} | "
                f"{spread(ratios(ours_after, after), 2)} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--consumers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--json", type=Path, help="also write every single measurement here")
    options = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=1 << 30, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder, ray_compat.quiet_data():
        catalog = make_data(Path(folder), options.megabytes)
        found = {size: compare(catalog, size, options.n) for size in options.consumers}
        text = table(found, catalog)
    ray.shutdown()
    if options.json:
        raw = {size: {arm: [asdict(m) for m in runs] for arm, runs in arms.items()} for size, arms in found.items()}
        options.json.write_text(json.dumps({"machine": machine(), "measured": raw}, indent=1) + "\n")
    write_result("feed", text)


if __name__ == "__main__":
    main()
