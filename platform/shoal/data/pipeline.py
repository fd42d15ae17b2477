"""The Ray Data pipeline: windows of the order, each read and permuted by one task, blocks left in the object store."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from shoal import ray_compat
from shoal.data.catalog import Catalog, Group
from shoal.data.columns import to_arrow, to_numpy
from shoal.data.order import Order, Window
from shoal.data.reserving import Reservation
from shoal.errors import DataError

if TYPE_CHECKING:
    from ray.data import Datasource

SEGMENT_TASKS = 256
"""Tasks of one Ray Data execution. A long run is many executions, so that no list of a million tasks is ever made."""
TASK_BYTES = 8 << 20
"""A task makes windows of at least this size, because starting one costs as much as reading some megabytes."""
WINDOW_LIMIT = 1 << 30
"""Most bytes of one window: a task holds a whole window, twice while it permutes it."""

REMEDY = (
    "; if the storage was at fault, resume the run; if the file is damaged, bring a good copy, or find all such row "
    "groups and leave them out of a new run with `shoal data verify --write-skip`"
)
"""What to do about a row group that cannot be read."""

_ATTEMPTS = 3
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """A row group to read, and how many rows it must have."""

    file: str
    row_group: int
    rows: int
    file_bytes: int
    """Size that the file must have."""


def part_of(catalog: Catalog, group: Group) -> Part:
    """What is to be read of `group`, one of `catalog`'s."""
    return Part(catalog.files[group.file], group.row_group, group.rows, catalog.file_bytes[group.file])


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
    need = (window + largest) * catalog.sample_bytes
    if need <= WINDOW_LIMIT:
        return
    fits = WINDOW_LIMIT // catalog.sample_bytes
    remedy = (
        f"set data.window to {max(1, fits - largest)} or less"
        if largest < fits
        else f"write the files again with row groups of at most {max(1, fits // 2)} rows (pyarrow: row_group_size=...)"
    )
    raise DataError(
        f"{catalog.uri}: samples of about {catalog.sample_bytes} bytes, row groups of up to {largest} rows and "
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
    for window in order.windows(start, stop):
        parts = tuple(part_of(catalog, catalog.groups[i]) for i in window.groups)
        picked = () if window.limit is None else tuple(order.rows(window, i) for i in window.groups)
        task.append(WindowPlan(window, parts, picked))
        if (window.stop - task[0].window.start) * catalog.sample_bytes >= task_bytes:
            yield tuple(task)
            task = []
    if task:
        yield tuple(task)


def read_windows(filesystem: pafs.FileSystem, columns: Sequence[str], task: Sequence[WindowPlan]) -> Iterator[pa.Table]:
    """One table per window, its rows permuted. Raises DataError naming file and row group."""
    reader = _KeepingReader(GroupReader(filesystem, columns), Counter(p for plan in task for p in plan.parts))
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


class _KeepingReader:
    """Keeps a row group only as long as a later window of the same task needs it again."""

    def __init__(self, reader: GroupReader, uses: Counter[Part]) -> None:
        self._reader, self._uses = reader, uses
        self._kept: dict[Part, dict[str, np.ndarray]] = {}

    def take(self, part: Part) -> dict[str, np.ndarray]:
        group = self._kept.get(part)
        if group is None:
            group = self._kept[part] = self._reader.read(part)
        self._uses[part] -= 1
        if not self._uses[part]:
            del self._kept[part]
        return group


class GroupReader:
    """Reads row groups one after another; the file of the last one stays open. Not thread-safe."""

    def __init__(self, filesystem: pafs.FileSystem, columns: Sequence[str]) -> None:
        self._filesystem, self._columns = filesystem, list(columns)
        self._file: tuple[str, pq.ParquetFile, int] | None = None

    def read(self, part: Part) -> dict[str, np.ndarray]:
        """Column name -> array [rows, ...]. Raises DataError naming file and row group."""
        return self._convert(part, self._read(part))

    def metadata(self, part: Part) -> pq.RowGroupMetaData:
        """What the footer says of the row group that was read last."""
        assert self._file is not None
        assert self._file[0] == part.file
        return self._file[1].metadata.row_group(part.row_group)

    def _read(self, part: Part) -> pa.Table:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if self._file is None or self._file[0] != part.file:
                    self._file = self._open(part.file)
                return self._file[1].read_row_group(part.row_group, columns=self._columns, use_threads=False)
            except FileNotFoundError:
                raise DataError(
                    f"{part.file} is gone, or is not on {socket.gethostname()} where it was to be read; keep the data "
                    f"on storage that every node sees, and leave it alone while a run reads it"
                ) from None
            except OSError as error:
                self._file = None
                if attempt == _ATTEMPTS:
                    raise DataError(_unreadable(part, f"after {_ATTEMPTS} attempts: {error}")) from None
                time.sleep(_PAUSE_S * 2**attempt)  # storage that is busy deserves a pause
            except (pa.ArrowException, IndexError) as error:
                raise DataError(_unreadable(part, str(error))) from None
        raise AssertionError("the last attempt returns or raises")

    def _open(self, file: str) -> tuple[str, pq.ParquetFile, int]:
        handle = self._filesystem.open_input_file(file)
        return file, pq.ParquetFile(handle, page_checksum_verification=True), handle.size()

    def _convert(self, part: Part, table: pa.Table) -> dict[str, np.ndarray]:
        if table.num_rows != part.rows:
            raise DataError(
                f"{part.file}: row group {part.row_group} has {table.num_rows} rows, it had {part.rows} when the run "
                f"began; leave the data alone while a run reads it"
            )
        try:
            columns = {name: to_numpy(name, table.column(name)) for name in self._columns}
        except DataError as error:
            raise DataError(f"{part.file}, row group {part.row_group}: {error}") from None
        if self._file is not None and self._file[2] != part.file_bytes:
            raise DataError(
                f"{part.file}: row group {part.row_group} lies in a file of {self._file[2]} bytes, it had "
                f"{part.file_bytes} when the run began; leave the data alone while a run reads it"
            )
        return columns


def _unreadable(part: Part, reason: str) -> str:
    plain = "".join(c if c.isprintable() else "?" for c in reason.strip().splitlines()[0])
    return f"{part.file}: row group {part.row_group} cannot be read ({plain}){REMEDY}"


def window_source(catalog: Catalog, tasks: Sequence[tuple[WindowPlan, ...]]) -> Datasource:
    """`tasks` as a Ray Data source: one read task each."""
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    filesystem, columns = catalog.filesystem, catalog.column_names

    def read_task(task: tuple[WindowPlan, ...]) -> ReadTask:
        rows = sum(plan.window.samples for plan in task)
        metadata = BlockMetadata(
            num_rows=rows, size_bytes=rows * catalog.sample_bytes, input_files=None, exec_stats=None
        )
        return ReadTask(lambda: read_windows(filesystem, columns, task), metadata)

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
    catalog: Catalog, order: Order, start: int, stop: int, *, reservation: Reservation, held_bytes: int
) -> Iterator[ray_compat.Block]:
    """Blocks of positions from the window of `start` to the one of `stop - 1`, in order.

    Works in segments, each one execution of Ray Data; the next one starts while the current one still has a quarter of
    its blocks to give. Raises what the pipeline raises; DataError if rows are missing at the end of a segment.
    """
    tasks = plans(catalog, order, start, stop, task_bytes=min(TASK_BYTES, held_bytes // 8))

    def begin() -> _Segment | None:
        segment = list(islice(tasks, SEGMENT_TASKS))
        return _Segment.begin(catalog, segment, reservation, held_bytes) if segment else None

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
        cls, catalog: Catalog, tasks: Sequence[tuple[WindowPlan, ...]], reservation: Reservation, held_bytes: int
    ) -> _Segment:
        dataset = ray_compat.read_in_order(
            window_source(catalog, tasks),
            tasks=len(tasks),
            cpus=reservation.cpus,
            task_cpus=reservation.task_cpus,
            group=reservation.group,
            held_bytes=held_bytes,
        )
        rows = sum(plan.window.samples for task in tasks for plan in task)
        return cls(rows, ray_compat.blocks(dataset))
