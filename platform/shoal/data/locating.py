"""Where the samples of a stretch of the order lie: `shoal data order`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from shoal.data.catalog import Catalog
from shoal.data.order import Order, Window
from shoal.data.training import TrainingData
from shoal.job import Job
from shoal.positions import Positions


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sample lies: `row` counts inside the row group."""

    file: str
    row_group: int
    row: int


@dataclass(frozen=True, slots=True)
class Located:
    """One position of the endless stream."""

    position: int
    source: str
    """Its name in the mixture; "" if there is one source."""
    epoch: int
    """Of the source, from 1."""
    place: Place


def locate_step(job: Job, train: TrainingData, step: int, positions: Positions) -> list[Located]:
    """The samples that `step` (from 1) of `job` on `train` reads, in order of position, if the steps read `positions`.
    Where the job selects among them, all candidates.

    From the same orders that the feed carries out: nothing depends on the number of workers. With a curriculum this
    reads one column of all the data. Raises DataError if that cannot be read.
    """
    start, stop = positions.of(step)
    mixture, orders = train.ordered(job, positions)
    if mixture is None:
        places = locate(train.catalogs[0], orders[0], start, stop)
        return [
            Located(p, train.names[0], e + 1, place) for p, (e, place) in zip(range(start, stop), places, strict=True)
        ]
    streams = [
        locate(catalog, order, *span)
        for catalog, order, span in zip(train.catalogs, orders, mixture.ranges(start, stop), strict=True)
    ]
    found = []
    for position, source in zip(range(start, stop), mixture.sources(start, stop).tolist(), strict=True):
        epoch, place = next(streams[source])  # each source's own samples come in its own order, without a gap
        found.append(Located(position, train.names[source], epoch + 1, place))
    return found


def locate(catalog: Catalog, order: Order, start: int, stop: int) -> Iterator[tuple[int, Place]]:
    """(epoch from 0, place) of each of positions [start, stop) of `order`, which must be that of `catalog`.

    The same as `Order.sample` for each, but with one permutation for each window that is touched.
    """
    for window in order.windows(start, stop):
        rows = [_rows(order, window, group) for group in window.groups]
        groups = np.repeat(np.asarray(window.groups), [len(r) for r in rows])
        joined, permuted = np.concatenate(rows), window.permutation()
        at = np.arange(max(start, window.start) - window.start, min(stop, window.stop) - window.start)
        chosen = at if permuted is None else permuted[at]
        for g, row in zip(groups[chosen].tolist(), joined[chosen].tolist(), strict=True):
            group = catalog.groups[g]
            yield window.epoch, Place(catalog.files[group.file], group.row_group, row)


def common_folder(catalog: Catalog) -> str:
    """The deepest folder that holds all files."""
    parents = [PurePosixPath(file).parent for file in catalog.files]
    common = parents[0]
    while not all(parent.is_relative_to(common) for parent in parents):
        common = common.parent
    return str(common)


def _rows(order: Order, window: Window, group: int) -> np.ndarray:
    rows = order.rows(window, group)
    return np.arange(order.group_rows[group]) if rows is None else rows
