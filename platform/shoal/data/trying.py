"""Tries the user's transforms on the first rows of a data set, before anything starts: what comes out, and whether each
row's result is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from shoal.data import transforming
from shoal.data.catalog import Catalog
from shoal.data.columns import Column
from shoal.data.groups import GroupReader, part_of
from shoal.data.transforming import CALL_BYTES, CALL_ROWS, Samples, Transforming
from shoal.errors import DataError, TaskError
from shoal.job.checks import nearest
from shoal.job.transforms import Transform

ROWS = 4
"""Rows that are tried."""


def transformed(catalog: Catalog, steps: Sequence[Transform], needed: Sequence[str], purpose: int) -> Catalog:
    """`catalog`, of raw columns, as one of the samples that `steps` make of them; `needed` are the task's columns.

    `purpose`: what the keys are for, `transforming.TRAIN` or `VALIDATION`. Raises TaskError if the steps fail, give
    what cannot be a batch, or treat a row by its neighbours or by chance; DataError if the rows cannot be read, or lack
    what is needed.
    """
    pickled = transforming.dump(steps)
    steps = transforming.load(pickled)  # as the reading tasks will see them
    reader = GroupReader(catalog.filesystem, catalog.column_names)
    rows = reader.first(part_of(catalog, catalog.groups[0]), ROWS)
    found, columns = _tried(steps, rows, catalog.columns)
    missing = [name for name in needed if name not in found]
    if missing:
        raise DataError(
            f"the transforms in data.transforms give {transforming.said(columns)}, and the task needs column "
            f"{missing[0]!r}{nearest(missing[0], list(found))}; return it, too, or name the right one in the task's "
            f"`columns`"
        )
    size = max(1, sum(c.sample_bytes or 0 for c in columns))
    made = Transforming(
        pickled=pickled,
        purpose=purpose,
        raw=catalog.columns,
        raw_bytes=catalog.sample_bytes,
        columns=columns,
        call_rows=max(1, min(CALL_ROWS, CALL_BYTES // max(size, catalog.sample_bytes))),
    )
    return replace(catalog, columns=columns, sample_bytes=size, transforming=made)


def _tried(steps: Sequence[Transform], rows: pa.Table, raw: Sequence[Column]) -> tuple[Samples, tuple[Column, ...]]:
    """The samples of `rows`, and what they are."""
    keys = np.arange(1, rows.num_rows + 1, dtype=np.uint64) << np.uint64(40)

    def call(first: int, stop: int) -> Samples:
        part = rows.slice(first, stop - first)
        columns = {name: part.column(name) for name in part.column_names}
        return transforming.run(steps, transforming.arrays(columns, raw), keys[first:stop])

    found = call(0, rows.num_rows)
    columns = transforming.described(steps, found)
    again, alone = call(0, rows.num_rows), [call(i, i + 1) for i in range(rows.num_rows)]
    keep = "take all random numbers from the keys, and keep nothing from one call to the next"
    _compare(found, [again], "for the same rows and keys, the second time", keep, exact=True)
    by_itself = "treat each row by itself: nothing may depend on the other rows of a call"
    _compare(found, alone, "for each row alone and for all together", by_itself, exact=False)
    return found, columns


def _compare(found: Samples, others: Sequence[Samples], when: str, remedy: str, *, exact: bool) -> None:
    """Raise TaskError unless `others`, one after another, are `found`; unless `exact`, rounding may differ."""
    for name, column in found.items():
        parts = [other.get(name) for other in others]
        same = all(p is not None and (p.dtype, p.shape[1:]) == (column.dtype, column.shape[1:]) for p in parts)
        if not same or not _equal(column, np.concatenate([p for p in parts if p is not None]), exact=exact):
            raise TaskError(
                f"the transforms in data.transforms give other values of column {name!r} {when}, so samples would "
                f"depend on more than their row and key; {remedy}"
            )


def _equal(one: np.ndarray, other: np.ndarray, *, exact: bool) -> bool:
    if exact or one.dtype.kind != "f":
        return one.tobytes() == other.tobytes()
    return np.allclose(one, other, rtol=max(1e-3, 4 * np.finfo(one.dtype).eps), atol=1e-6, equal_nan=True)
