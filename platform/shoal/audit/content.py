"""Reads the data of a run again, in the data order, and compares each step's samples with what the ledger says."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain as joined

import numpy as np

from shoal.audit.chain import Chain, Fault, Spans, steps
from shoal.data.catalog import Catalog
from shoal.data.mixture import Mixture
from shoal.data.order import Order
from shoal.data.pipeline import WindowPlan, plans, read_samples
from shoal.data.reader import mixed
from shoal.digests import shard_digests, step_digest

Samples = dict[str, np.ndarray]

EVERY = 64
"""Steps between two words about the progress."""


@dataclass(frozen=True, slots=True)
class Content:
    """What re-reading the data has shown."""

    first: int
    last: int
    """The steps that were looked at."""
    equal: int
    """Steps whose samples are those that the ledger says."""
    unknown: int
    """Steps of which the ledger has no digest: a member died before it could tell, or an earlier release ran them."""
    faults: tuple[Fault, ...]


def compare(
    chain: Chain,
    reading: Reading,
    *,
    shards: int,
    within: tuple[int, int],
    progress: Callable[[int, int], None] = lambda done, all: None,
) -> Content:
    """Compare the steps `within` (first, last) of `chain`. `shards` are the virtual shards of a step.

    Raises DataError if the data cannot be read. `progress` is told how many of how many steps are done.
    """
    first, last = max(within[0], chain.first), min(within[1], chain.last)
    differ, equal, unknown = Spans(), 0, 0
    if first <= last:
        start, stop = chain.range_of(first)[0], chain.range_of(last)[1]
        sizes = (high - low for low, high in map(chain.range_of, range(first, last + 1)))
        for step, samples in enumerate(reading.slices(start, stop, sizes), first):
            said = chain.digest(step)
            if not said:
                unknown += 1
            elif said == step_digest([shard_digests(samples, shards)]):
                equal += 1
            else:
                differ.add(step)
            if (step - first) % EVERY == 0 or step == last:
                progress(step - first + 1, last - first + 1)
    faults = tuple(
        Fault("content", f"{steps(a, b)} run on other samples than those of the data order", (a, b))
        for a, b, _ in differ
    )
    return Content(first, last, equal, unknown, faults)


@dataclass(frozen=True, slots=True)
class Reading:
    """The training data of a run, to be read again in its order."""

    catalogs: Sequence[Catalog]
    orders: Sequence[Order]
    mixture: Mixture | None = None
    """None: there is one source."""

    def slices(self, start: int, stop: int, sizes: Iterable[int]) -> Iterator[Samples]:
        """Consecutive slices of positions [start, stop) of the endless stream, of `sizes` samples each; together they
        are all of them."""
        mixture = self.mixture
        spans = [(start, stop)] if mixture is None else mixture.ranges(start, stop)
        with ExitStack() as stack:
            takes = [
                stack.enter_context(closing(_take(catalog, order, *span)))
                for catalog, order, span in zip(self.catalogs, self.orders, spans, strict=True)
            ]
            for take in takes:
                next(take)  # up to where it waits to be told how many
            at = start
            for size in sizes:
                if mixture is None:
                    yield takes[0].send(size)
                    continue
                counts = [high - low for low, high in mixture.ranges(at, at + size)]
                parts = [take.send(n) if n else None for take, n in zip(takes, counts, strict=True)]
                yield mixed(mixture.sources(at, at + size), parts)
                at += size


def _take(catalog: Catalog, order: Order, start: int, stop: int) -> Generator[Samples, int, None]:
    """Positions [start, stop) of one source, as many at a time as it is sent."""
    held: list[Samples] = []
    wanted = yield {}
    for plan, columns in _windows(catalog, order, start, stop):
        low, rows = max(start - plan.window.start, 0), plan.window.samples
        while rows - low + _rows(held) >= wanted:
            need = wanted - _rows(held)
            held.append({name: column[low : low + need] for name, column in columns.items()})
            low, ready, held = low + need, _joined(held), []
            wanted = yield ready
        if low < rows:
            held.append({name: column[low:] for name, column in columns.items()})


def _windows(catalog: Catalog, order: Order, start: int, stop: int) -> Iterator[tuple[WindowPlan, Samples]]:
    """Windows and their samples, each permuted; the next task is read while the last one is being looked at."""

    def read(task: tuple[WindowPlan, ...]) -> list[tuple[WindowPlan, Samples]]:
        return list(zip(task, read_samples(catalog, order.seed, task), strict=True))

    with ThreadPoolExecutor(1, thread_name_prefix="shoal-audit") as ahead:
        following = None
        for task in joined(plans(catalog, order, start, stop), [None]):
            ready, following = following, ahead.submit(read, task) if task else None
            if ready is not None:
                yield from ready.result()


def _rows(held: list[Samples]) -> int:
    return sum(len(next(iter(part.values()))) for part in held)


def _joined(held: list[Samples]) -> Samples:
    return held[0] if len(held) == 1 else {name: np.concatenate([part[name] for part in held]) for name in held[0]}
