"""Reads row groups, one after another: as arrays of numbers, or as they lie in the file. Without Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from shoal.data.catalog import Catalog, Group
from shoal.data.columns import to_numpy
from shoal.errors import DataError

REMEDY = (
    "; if the storage was at fault, resume the run; if the file is damaged, bring a good copy, or find all such row "
    "groups and leave them out of a new run with `shoal data verify --write-skip`"
)
"""What to do about a row group that cannot be read."""

T = TypeVar("T")

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


class GroupReader:
    """Reads row groups one after another; the file of the last one stays open. Not thread-safe."""

    def __init__(self, filesystem: pafs.FileSystem, columns: Sequence[str]) -> None:
        self._filesystem, self._columns = filesystem, list(columns)
        self._file: tuple[str, pq.ParquetFile, int] | None = None

    def read(self, part: Part) -> dict[str, np.ndarray]:
        """Column name -> array [rows, ...]. Raises DataError naming file and row group."""
        return self._checked(part, lambda table: {name: to_numpy(name, table.column(name)) for name in self._columns})

    def table(self, part: Part) -> pa.Table:
        """The same as it lies in the file, whatever the columns hold."""
        return self._checked(part, self._raw)

    def first(self, part: Part, rows: int) -> pa.Table:
        """At most the first `rows` rows of `table(part)`, without reading the others."""

        def read(file: pq.ParquetFile) -> pa.Table:
            batches = file.iter_batches(rows, row_groups=[part.row_group], columns=self._columns, use_threads=False)
            return pa.Table.from_batches([next(batches)])

        return _blamed(part, self._raw, self._read(part, read))

    def metadata(self, part: Part) -> pq.RowGroupMetaData:
        """What the footer says of the row group that was read last."""
        assert self._file is not None
        assert self._file[0] == part.file
        return self._file[1].metadata.row_group(part.row_group)

    def _read(self, part: Part, read: Callable[[pq.ParquetFile], pa.Table]) -> pa.Table:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if self._file is None or self._file[0] != part.file:
                    self._file = self._open(part.file)
                return read(self._file[1])
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

    def _checked(self, part: Part, convert: Callable[[pa.Table], T]) -> T:
        table = self._read(
            part, lambda file: file.read_row_group(part.row_group, columns=self._columns, use_threads=False)
        )
        if table.num_rows != part.rows:
            raise DataError(
                f"{part.file}: row group {part.row_group} has {table.num_rows} rows, it had {part.rows} when the run "
                f"began; leave the data alone while a run reads it"
            )
        group = _blamed(part, convert, table)
        if self._file is not None and self._file[2] != part.file_bytes:
            raise DataError(
                f"{part.file}: row group {part.row_group} lies in a file of {self._file[2]} bytes, it had "
                f"{part.file_bytes} when the run began; leave the data alone while a run reads it"
            )
        return group

    def _raw(self, table: pa.Table) -> pa.Table:
        """`table` with nothing but names and types, categories as the values that they stand for."""
        columns = {}
        for name in self._columns:
            column = table.column(name)
            if column.null_count:
                raise DataError(
                    f"column {name!r} holds {column.null_count} missing values; fill them in or drop those rows"
                )
            coded = pa.types.is_dictionary(column.type)
            columns[name] = column.cast(column.type.value_type) if coded else column
        return pa.table(columns)


def _blamed(part: Part, convert: Callable[[pa.Table], T], table: pa.Table) -> T:
    """What `convert` makes of `table`. Its DataErrors name file and row group."""
    try:
        return convert(table)
    except DataError as error:
        raise DataError(f"{part.file}, row group {part.row_group}: {error}") from None


def _unreadable(part: Part, reason: str) -> str:
    plain = "".join(c if c.isprintable() else "?" for c in reason.strip().splitlines()[0])
    return f"{part.file}: row group {part.row_group} cannot be read ({plain}){REMEDY}"
