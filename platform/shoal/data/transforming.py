"""Runs the user's own transforms of raw samples (`data.transforms`), inside Ray Data's reading tasks.

The rows of a window are cut into calls, always the same ones: consecutive rows from the window's beginning on. Between
reading and transforming a call is one row of an Arrow table, whose columns are lists; so Ray Data may join and split
blocks as it likes, and never splits a call. The transforms travel pickled, so that processes which only pass them on
need none of the user's modules. Imports neither Ray nor torch.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from shoal.data.columns import OBJECT, Column, to_arrow, to_numpy
from shoal.data.order import derive, derive_each
from shoal.errors import ConfigError, ShoalError, TaskError
from shoal.job import by_value
from shoal.job.transforms import Transform, transform_name

Samples = dict[str, np.ndarray]

CALL_BYTES = 4 << 20
CALL_ROWS = 1024
"""A call takes rows of together about `CALL_BYTES` bytes, before or after, and at most `CALL_ROWS` of them."""
TRAIN, VALIDATION = 0x7472616E73, 0x68656C646F7574
"""What keys are for ("trans", "heldout"), apart from the orders' keys."""

_KEYS = "_shoal_keys"


@dataclass(frozen=True, kw_only=True, slots=True)
class Transforming:
    """The transforms of one data set, and what is known of the samples before and after. Survives pickling anywhere."""

    pickled: bytes = field(repr=False)
    purpose: int
    """TRAIN or VALIDATION."""
    raw: tuple[Column, ...]
    """What is read from the files."""
    raw_bytes: int
    """Of one row, estimated."""
    columns: tuple[Column, ...]
    """What comes out: of one type and shape for all samples."""
    call_rows: int
    """Rows of a call; the last one of a window may have fewer."""

    def keys(self, seed: int, start: int, stop: int) -> np.ndarray:
        """uint64 [stop - start]: the keys of these positions of the endless order that `seed` made."""
        return derive_each(derive(seed, self.purpose), np.arange(start, stop, dtype=np.int64))

    def calls(self, table: pa.Table, keys: np.ndarray) -> pa.Table:
        """A window's rows and their keys, as a table with a row for each call. Shares the memory."""
        edges = pa.array([*range(0, len(keys), self.call_rows), len(keys)], pa.int64())
        columns = {name: table.column(name) for name in table.column_names} | {_KEYS: pa.chunked_array([keys])}
        return pa.table({n: pa.LargeListArray.from_arrays(edges, _one(column)) for n, column in columns.items()})

    def tables(self, calls: pa.Table) -> Iterator[pa.Table]:
        """The samples of each of `calls`, rows of what `self.calls` gave. Ray Data's `map_batches` calls this."""
        for samples in self.samples(calls):
            yield pa.table({name: to_arrow(column) for name, column in samples.items()})

    def samples(self, calls: pa.Table) -> Iterator[Samples]:
        """The same as arrays. Raises TaskError with the user's traceback, or for samples unlike the first ones."""
        steps = load(self.pickled)
        for row in range(calls.num_rows):
            raw = {c.name: calls.column(c.name)[row].values for c in self.raw}
            found = run(steps, arrays(raw, self.raw), calls.column(_KEYS)[row].values.to_numpy())
            if (columns := described(steps, found)) != self.columns:
                raise TaskError(
                    f"{_named(steps)} gave {said(columns)}, and for the first samples {said(self.columns)}; "
                    f"give all samples the same columns, types and shapes (pad or cut them)"
                )
            yield found


def dump(steps: Sequence[Transform]) -> bytes:
    """`steps` as they travel. Raises ConfigError if they cannot."""
    try:
        return by_value.dumps(tuple(steps))
    except Exception as error:  # whatever the user's values raise when they are pickled
        raise ConfigError(
            f"data.transforms cannot be sent to other processes: {type(error).__name__}: {error}; keep what cannot be "
            f"pickled (open files, locks, tokenizers) out of their fields, and make it in a function that is cached"
        ) from error


@lru_cache(maxsize=4)
def load(pickled: bytes) -> tuple[Transform, ...]:
    """Inverse of `dump`; once per process, so that what a transform keeps in itself is made once, too."""
    return tuple(by_value.loads(pickled))


def arrays(raw: Mapping[str, pa.Array | pa.ChunkedArray], columns: Sequence[Column]) -> Samples:
    """What transforms get: numbers as [n, ...], the rest as objects [n]. Raises DataError for missing numbers."""
    return {
        c.name: _one(raw[c.name]).to_numpy(zero_copy_only=False) if c.dtype == OBJECT else to_numpy(c.name, raw[c.name])
        for c in columns
    }


def run(steps: Sequence[Transform], columns: Samples, keys: np.ndarray) -> Samples:
    """One call: `columns` (name -> [n, ...]) through all `steps`. Raises TaskError, naming the step."""
    for step in steps:
        with _Blame(step):
            columns = step(columns, keys)
        _check_rows(step, columns, len(keys))
    return {name: np.ascontiguousarray(column) for name, column in sorted(columns.items())}


def described(steps: Sequence[Transform], samples: Samples) -> tuple[Column, ...]:
    """The columns that `samples` are. Raises TaskError for what cannot be a batch."""
    for name, column in samples.items():
        if column.dtype.kind not in "biuf" or column.dtype.itemsize > 8 or not column.dtype.isnative:
            first = column.reshape(-1)[0]
            raise TaskError(
                f"{_named(steps)} gave column {name!r} of {column.dtype} (the first: {_shown(first)}), and training "
                f"takes arrays of numbers: pad or cut samples to one shape, and leave text out of what is returned"
            )
        if 0 in column.shape[1:]:
            raise TaskError(f"{_named(steps)} gave column {name!r} with empty samples, shape {list(column.shape[1:])}")
    return tuple(Column(name, column.dtype.name, column.shape[1:]) for name, column in samples.items())


def said(columns: Sequence[Column]) -> str:
    """Columns in words."""
    return ", ".join(f"{c.name} ({c.dtype} {list(c.shape)})" for c in columns)


def _check_rows(step: Transform, columns: Any, rows: int) -> None:
    name = transform_name(step)
    if not isinstance(columns, dict) or not columns or not all(isinstance(key, str) for key in columns):
        raise TaskError(f"the transform {name} returned {_shown(columns)}; return a dict of arrays by column name")
    for key, column in columns.items():
        if not isinstance(column, np.ndarray):
            raise TaskError(
                f"the transform {name} returned {_shown(column)} as column {key!r}; return a NumPy array (of a list: "
                f"np.stack, of a tensor: .numpy())"
            )
        if column.shape[:1] != (rows,):
            raise TaskError(
                f"the transform {name} got {rows} rows and returned column {key!r} of shape {list(column.shape)}; "
                f"return a row for each row that it gets"
            )


class _Blame:
    """Turns what the user's code raises inside into TaskError with its traceback."""

    def __init__(self, step: Transform) -> None:
        self._step = step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, ShoalError):
            return
        own = error.__traceback__.tb_next if error.__traceback__ else None  # without the frame that called them
        theirs = "".join(traceback.format_exception(type(error), error, own)).rstrip()
        raise TaskError(
            f"the transform {transform_name(self._step)} failed: {type(error).__name__}: {error}\n{theirs}"
        ) from error


def _one(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """All chunks as one array."""
    if not isinstance(array, pa.ChunkedArray):
        return array
    return array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks)


def _named(steps: Sequence[Transform]) -> str:
    names = [transform_name(step) for step in steps]
    return f"the transform {names[0]}" if len(names) == 1 else f"the transforms {', '.join(names)} together"


def _shown(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return f"{type(value).__name__} {text[:80]}{'…' if len(text) > 80 else ''}"
