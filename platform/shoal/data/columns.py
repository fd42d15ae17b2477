"""Columns between Arrow and NumPy: which Arrow types are samples' arrays, and how they become such without a copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shoal.errors import DataError

OBJECT = "object"


@dataclass(frozen=True, slots=True)
class Column:
    """One column as the task, or a transform of raw columns, sees it: an array [samples, *shape] of `dtype`."""

    name: str
    dtype: str
    """NumPy's name, for example `uint8`; `object` (of raw columns only): text, bytes, lists without a fixed length."""
    shape: tuple[int | None, ...]
    """Of one sample. None: a list, whose length must be equal over all samples and is known from the data only."""

    @property
    def sample_bytes(self) -> int | None:
        """Bytes of one sample in memory; None if a length is not known."""
        if None in self.shape or self.dtype == OBJECT:
            return None
        return int(np.dtype(self.dtype).itemsize * np.prod([n for n in self.shape if n is not None], dtype=np.int64))


def describe(name: str, arrow: pa.DataType) -> Column | None:
    """The column that a field of type `arrow` makes, or None if it cannot become an array of numbers."""
    shape: list[int | None] = []
    while True:
        if isinstance(arrow, pa.FixedShapeTensorType):
            shape.extend(arrow.shape)
            arrow = arrow.value_type
        elif isinstance(arrow, pa.BaseExtensionType):
            arrow = arrow.storage_type
        elif pa.types.is_fixed_size_list(arrow):
            shape.append(arrow.list_size)
            arrow = arrow.value_type
        elif pa.types.is_list(arrow) or pa.types.is_large_list(arrow):
            shape.append(None)
            arrow = arrow.value_type
        else:
            break
    if not (pa.types.is_integer(arrow) or pa.types.is_floating(arrow) or pa.types.is_boolean(arrow)):
        return None
    return Column(name, np.dtype(arrow.to_pandas_dtype()).name, tuple(shape))


def describe_raw(name: str, arrow: pa.DataType) -> Column:
    """The column that transforms get of a field of type `arrow`: numbers where all shapes are known, else objects."""
    column = describe(name, arrow)
    return Column(name, OBJECT, ()) if column is None or None in column.shape else column


def to_numpy(name: str, array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Arrow -> NumPy [rows, ...]; a view of Arrow's memory where the layout allows (not for booleans).

    Raises DataError for missing values and for lists of unequal lengths; the caller adds where it happened.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
        if isinstance(array, pa.ChunkedArray):  # no chunks at all, or too long for one array
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    rows, shape = len(array), []
    count = rows
    while True:
        if array.null_count:
            raise DataError(f"column {name!r} holds {array.null_count} missing values; fill them in or drop those rows")
        kind = array.type
        if isinstance(kind, pa.FixedShapeTensorType):
            shape.extend(kind.shape)
            size = int(np.prod(kind.shape, dtype=np.int64))
            array, count = _values(array.storage, count, size), count * size
        elif isinstance(kind, pa.BaseExtensionType):
            array = array.storage
        elif pa.types.is_fixed_size_list(kind):
            shape.append(kind.list_size)
            array, count = _values(array, count, kind.list_size), count * kind.list_size
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            size = _equal_length(name, array)
            shape.append(size)
            array, count = array.flatten(), count * size
        else:
            break
    return array.to_numpy(zero_copy_only=False).reshape(rows, *shape)


def to_arrow(array: np.ndarray) -> pa.Array:
    """NumPy [rows, ...] -> Arrow: numbers, or fixed-size lists nested as deep as the shape; shares the memory."""
    out = pa.array(np.ascontiguousarray(array).reshape(-1))
    for size in reversed(array.shape[1:]):
        out = pa.FixedSizeListArray.from_arrays(out, size)
    return out


def _values(array: pa.FixedSizeListArray, rows: int, size: int) -> pa.Array:
    """The items of `rows` fixed-size lists; unlike `flatten()`, without a look at every list."""
    return array.values.slice(array.offset * size, rows * size)


def _equal_length(name: str, array: pa.Array) -> int:
    lengths = np.diff(array.offsets.to_numpy())
    if len(lengths) == 0:
        return 0
    low, high = int(lengths.min()), int(lengths.max())
    if low != high:
        raise DataError(
            f"column {name!r} holds lists of {low} to {high} items, and a batch needs equal lengths; pad or cut them, "
            f"or pack text into blocks with `shoal data prepare`"
        )
    return low
