"""Easy samples first: which rows take part at any time, from their difficulty and from how far the run is.

Difficulty is a number per row: a column of the data (a loss, a length, anything), or computed from the sample. Rows are
ranked by it once; a pass over the data then takes the easiest share, which grows with progress (Bengio et al. 2009,
"Curriculum learning"). Which share when is the pacing (Hacohen and Weinshall 2019; `root`: Platanios et al. 2019).
"""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from shoal.data.catalog import Catalog, Group, read_footer
from shoal.data.columns import describe
from shoal.data.groups import GroupReader, part_of
from shoal.errors import DataError
from shoal.job.sampling import Curriculum

COMPUTED = ("length", "compressibility")


@dataclass(frozen=True, slots=True)
class Ranked:
    """A curriculum over one source: an `order.Pacing`."""

    spec: Curriculum
    ranks: tuple[np.ndarray, ...] = field(repr=False)
    """int64 [rows] per group: each row's place among all rows, the easiest first."""
    total: int
    """Positions of the source's stream in the whole budget: what progress is a fraction of."""

    def limit(self, position: int) -> int:
        rows = sum(len(r) for r in self.ranks)
        return min(rows, max(1, ceil(rows * share(self.spec, position / max(1, self.total)))))

    def counts(self, limit: int) -> np.ndarray:
        return np.asarray([np.count_nonzero(r < limit) for r in self.ranks], np.int64)

    def rows(self, group: int, limit: int) -> np.ndarray:
        return np.flatnonzero(self.ranks[group] < limit)


def share(spec: Curriculum, progress: float) -> float:
    """Which share of the rows, the easiest ones, takes part at `progress` in [0, 1]."""
    at = min(1.0, progress / spec.until)
    if spec.pacing == "root":
        return float((spec.start**2 + (1.0 - spec.start**2) * at) ** 0.5)
    if spec.pacing == "step":
        at = int(at * spec.steps) / spec.steps
    return spec.start + (1.0 - spec.start) * at


def ranked(catalog: Catalog, spec: Curriculum, total: int, threads: int) -> Ranked:
    """Read (or compute) every row's difficulty and rank the rows; rows of equal difficulty keep the files' order.

    Reads one column of the whole data set, on `threads` threads. Raises DataError.
    """
    column = spec.of or catalog.raw[0].name if spec.difficulty in COMPUTED else spec.difficulty
    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="shoal-difficulty") as pool:
        list(pool.map(lambda file: _check_column(catalog, column, file), catalog.files))
        found = list(pool.map(lambda group: _difficulty(catalog, spec, column, group), catalog.groups))
    everything = np.concatenate(found)
    places = np.empty(len(everything), np.int64)
    places[np.argsort(-everything if spec.hardest_first else everything, kind="stable")] = np.arange(len(everything))
    edges = np.cumsum([len(f) for f in found])[:-1]
    return Ranked(spec, tuple(np.split(places, edges)), total)


def _check_column(catalog: Catalog, column: str, file: str) -> None:
    schema = read_footer(catalog.filesystem, file).schema
    if column not in schema.names:
        raise DataError(
            f"{file} has no column {column!r}, which data.curriculum asks for; it has {', '.join(schema.names)}, and "
            f"{' and '.join(COMPUTED)} are computed"
        )
    if describe(column, schema.field(column).type) is None:
        raise DataError(
            f"{file}: column {column!r} is {schema.field(column).type}, and data.curriculum ranks rows, as they lie in "
            f"the files, by numbers; write a column with each row's difficulty, and name it"
        )


def _difficulty(catalog: Catalog, spec: Curriculum, column: str, group: Group) -> np.ndarray:
    """float64 [rows] of one row group."""
    part = part_of(catalog, group)
    where = f"{part.file}, row group {part.row_group}: column {column!r}"
    values = GroupReader(catalog.filesystem, [column]).read(part)[column]
    if spec.difficulty == "length":
        return _lengths(values.reshape(len(values), -1))
    if spec.difficulty == "compressibility":
        return np.asarray([_incompressible(row) for row in values], np.float64)
    if values.ndim != 1:
        raise DataError(f"{where} holds {list(values.shape[1:])} numbers per row; a difficulty is one")
    if not np.isfinite(values.astype(np.float64)).all():
        raise DataError(f"{where} holds values that are no numbers; every row needs a difficulty")
    return values.astype(np.float64)


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Entries of each row up to where the same value fills the rest, as padding does."""
    same = rows == rows[:, -1:]
    tail = np.argmin(same[:, ::-1], axis=1)
    tail[same.all(1)] = rows.shape[1]
    return np.maximum(rows.shape[1] - tail + 1, 1).astype(np.float64)


def _incompressible(row: np.ndarray) -> float:
    """Compressed bytes per byte: little for what repeats itself. In the narrowest type that holds the values."""
    if np.issubdtype(row.dtype, np.integer) and row.size and row.min() >= 0 and row.max() < 256:
        row = row.astype(np.uint8)
    content = row.tobytes()
    return len(zlib.compress(content, 6)) / max(1, len(content))
