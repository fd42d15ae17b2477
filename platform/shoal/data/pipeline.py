"""The Ray Data pipeline: windows of the order, each read and permuted by one task, blocks left in the object store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from shoal import ray_compat
from shoal.data.catalog import Catalog
from shoal.data.columns import to_arrow, to_numpy
from shoal.data.groups import GroupReader, Part, part_of
from shoal.data.order import Order, Window
from shoal.data.reserving import Reservation
from shoal.data.transforming import Samples, Transforming
from shoal.errors import DataError

if TYPE_CHECKING:
    from ray.data import Datasource

SEGMENT_TASKS = 256
"""Tasks of one Ray Data execution. A long run is many executions, so that no list of a million tasks is ever made."""
TASK_BYTES = 8 << 20
"""A task makes windows of at least this size, because starting one costs as much as reading some megabytes."""
WINDOW_LIMIT = 1 << 30
"""Most bytes of one window: a task holds a whole window, twice while it permutes it."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """What one window is made of; carries all that a task needs, and no more."""

    window: Window
    parts: tuple[Part, ...]
    picked: tuple[np.ndarray | None, ...] = ()
    """Of each part the rows that take part; none at all: all of all parts."""


def check_window(catalog: Catalog, window: int) -> None:
    """Raise DataError if a task could not hold one window of `catalog`."""
    largest = max(g.rows for g in catalog.groups)
    need = (window + largest) * catalog.row_bytes
    if need <= WINDOW_LIMIT:
        return
    fits = WINDOW_LIMIT // catalog.row_bytes
    remedy = (
        f"set data.window to {max(1, fits - largest)} or less"
        if largest < fits
        else f"write the files again with row groups of at most {max(1, fits // 2)} rows (pyarrow: row_group_size=...)"
    )
    raise DataError(
        f"{catalog.uri}: samples of about {catalog.row_bytes} bytes, row groups of up to {largest} rows and "
        f"data.window={window} make one reading task hold {need / 2**30:.1f} GiB (limit "
        f"{WINDOW_LIMIT >> 30} GiB); {remedy}"
    )


def plans(
    catalog: Catalog, order: Order, start: int, stop: int, *, task_bytes: int = TASK_BYTES
) -> Iterator[tuple[WindowPlan, ...]]:
    """The tasks for positions [start, stop): consecutive windows of together at least `task_bytes` bytes each.

    Where the whole data set is smaller than that, one task reads it once for several epochs.
    """
    task: list[WindowPlan] = []
    row_bytes = max(catalog.row_bytes, catalog.sample_bytes)
    for window in order.windows(start, stop):
        parts = tuple(part_of(catalog, catalog.groups[i]) for i in window.groups)
        picked = () if window.limit is None else tuple(order.rows(window, i) for i in window.groups)
        task.append(WindowPlan(window, parts, picked))
        if (window.stop - task[0].window.start) * row_bytes >= task_bytes:
            yield tuple(task)
            task = []
    if task:
        yield tuple(task)


def read_windows(filesystem: pafs.FileSystem, columns: Sequence[str], task: Sequence[WindowPlan]) -> Iterator[pa.Table]:
    """One table per window, its rows permuted. Raises DataError naming file and row group."""
    reader = _Keeping(GroupReader(filesystem, columns).read, task)
    for plan in task:
        groups = [_picked(reader.take(part), rows) for part, rows in zip_longest(plan.parts, plan.picked)]
        drawn = plan.window.permutation() if plan.window.replacement else None
        places = None if plan.window.replacement else _places(plan.window)
        arrays = []
        for name in columns:
            pieces = [g[name] for g in groups]
            if len({p.shape[1:] for p in pieces}) > 1:
                raise DataError(
                    f"column {name!r} has samples of different shapes ({sorted({p.shape[1:] for p in pieces})}) in "
                    f"{', '.join(sorted({p.file for p in plan.parts}))}; pad or cut them to one shape"
                )
            arranged = _arranged(pieces, places)
            arrays.append(to_arrow(arranged if drawn is None else arranged[drawn]))
        yield pa.table(arrays, names=list(columns))


def read_calls(
    filesystem: pafs.FileSystem, transforming: Transforming, seed: int, task: Sequence[WindowPlan]
) -> Iterator[pa.Table]:
    """One table per window of the order that `seed` made: its raw rows, permuted, and cut into calls of the transforms.
    Raises DataError naming file and row group."""
    reader = _Keeping(GroupReader(filesystem, [c.name for c in transforming.raw]).table, task)
    for plan in task:
        keys = transforming.keys(seed, plan.window.start, plan.window.stop)
        yield transforming.calls(_permuted(reader, plan), keys)


def read_samples(catalog: Catalog, seed: int, task: Sequence[WindowPlan]) -> Iterator[Samples]:
    """The samples of each window as training gets them, where no pipeline is at hand. As the pipeline's tasks."""
    if (transforming := catalog.transforming) is None:
        for table in read_windows(catalog.filesystem, catalog.column_names, task):
            yield {name: to_numpy(name, table.column(name)) for name in table.column_names}
        return
    for calls in read_calls(catalog.filesystem, transforming, seed, task):
        parts = list(transforming.samples(calls))
        yield {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _permuted(reader: _Keeping[pa.Table], plan: WindowPlan) -> pa.Table:
    parts = ((reader.take(part), rows) for part, rows in zip_longest(plan.parts, plan.picked))
    table = pa.concat_tables([group if rows is None else group.take(rows) for group, rows in parts])
    order = plan.window.permutation()
    # Taking rows out of many chunks is many times slower than out of one.
    return table if order is None else table.combine_chunks().take(order)


def _picked(group: dict[str, np.ndarray], rows: np.ndarray | None) -> dict[str, np.ndarray]:
    return group if rows is None else {name: column[rows] for name, column in group.items()}


def _places(window: Window) -> np.ndarray | None:
    """Where each row, counted through the window's groups, goes in the window; None: it stays."""
    order = window.permutation()
    if order is None:
        return None
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _arranged(pieces: Sequence[np.ndarray], places: np.ndarray | None) -> np.ndarray:
    """The rows of all `pieces` at their places: one pass over memory, where joining and permuting would be two."""
    if places is None:
        return np.concatenate(pieces)
    out = np.empty((len(places), *pieces[0].shape[1:]), pieces[0].dtype)
    at = 0
    for piece in pieces:
        out[places[at : at + len(piece)]] = piece
        at += len(piece)
    return out


class _Keeping(Generic[T]):
    """Keeps a row group, as `read` gives it, only as long as a later window of the same task needs it again."""

    def __init__(self, read: Callable[[Part], T], task: Sequence[WindowPlan]) -> None:
        self._read, self._uses = read, Counter(part for plan in task for part in plan.parts)
        self._kept: dict[Part, T] = {}

    def take(self, part: Part) -> T:
        group = self._kept.get(part)
        if group is None:
            group = self._kept[part] = self._read(part)
        self._uses[part] -= 1
        if not self._uses[part]:
            del self._kept[part]
        return group


def window_source(catalog: Catalog, tasks: Sequence[tuple[WindowPlan, ...]], *, seed: int) -> Datasource:
    """`tasks` as a Ray Data source: one read task each. `seed`: of their order."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    filesystem, columns, transforming = catalog.filesystem, catalog.column_names, catalog.transforming

    def read(task: tuple[WindowPlan, ...]) -> Iterator[pa.Table]:
        if transforming is None:
            return read_windows(filesystem, columns, task)
        return read_calls(filesystem, transforming, seed, task)

    def read_task(task: tuple[WindowPlan, ...]) -> ReadTask:
        rows = sum(plan.window.samples for plan in task)
        metadata = BlockMetadata(
            num_rows=rows, size_bytes=rows * catalog.sample_bytes, input_files=None, exec_stats=None
        )
        return ReadTask(lambda: read(task), metadata)

    ready = [read_task(task) for task in tasks]

    class WindowSource(Datasource):
        def get_name(self) -> str:
            return "Windows"

        def estimate_inmemory_data_size(self) -> int:
            return sum(t.metadata.size_bytes or 0 for t in ready)

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            return ready

    return WindowSource()


def stream_blocks(
    catalog: Catalog,
    order: Order,
    start: int,
    stop: int,
    *,
    reservation: Reservation,
    held_bytes: int,
    wanted: threading.Event | None = None,
) -> Iterator[ray_compat.Block]:
    """Blocks of positions from the window of `start` to the one of `stop - 1`, in order. The consumer asks for no more
    of them while `wanted` is there and not set.

    Works in segments, each one execution of Ray Data; the next one starts while the current one still has a quarter of
    its blocks to give. Raises what the pipeline raises; DataError if rows are missing at the end of a segment.
    """
    tasks = plans(catalog, order, start, stop, task_bytes=min(TASK_BYTES, held_bytes // 8))

    def begin() -> _Segment | None:
        segment = list(islice(tasks, SEGMENT_TASKS))
        return _Segment.begin(catalog, order.seed, segment, reservation, held_bytes, wanted) if segment else None

    with ThreadPoolExecutor(1, thread_name_prefix="shoal-segment") as ahead:
        following: Future[_Segment | None] | None = ahead.submit(begin)
        while following is not None and (segment := following.result()) is not None:
            following = None
            rows = 0
            for block in segment.blocks:
                rows += block.rows
                if following is None and rows * 4 >= segment.rows * 3:
                    following = ahead.submit(begin)
                yield block
            if rows != segment.rows:
                raise DataError(f"{catalog.uri}: the pipeline gave {rows} of {segment.rows} samples; resume the run")


@dataclass(frozen=True, slots=True)
class _Segment:
    rows: int
    blocks: Iterable[ray_compat.Block]

    @classmethod
    def begin(
        cls,
        catalog: Catalog,
        seed: int,
        tasks: Sequence[tuple[WindowPlan, ...]],
        reservation: Reservation,
        held_bytes: int,
        wanted: threading.Event | None,
    ) -> _Segment:
        dataset = ray_compat.read_in_order(
            window_source(catalog, tasks, seed=seed),
            None if catalog.transforming is None else catalog.transforming.tables,
            tasks=len(tasks),
            cpus=reservation.cpus,
            task_cpus=reservation.task_cpus,
            group=reservation.group,
            held_bytes=held_bytes,
            wanted=wanted,
        )
        rows = sum(plan.window.samples for task in tasks for plan in task)
        return cls(rows, ray_compat.blocks(dataset))
