"""Looks at every row group of a data set before a run stumbles over one: `shoal data verify`."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from shoal.data.catalog import (
    MANIFEST,
    Footer,
    below,
    choose,
    folder_of,
    list_files,
    open_uri,
    prepared_split,
    read_catalog,
    read_footer,
    same_types,
)
from shoal.data.content_digest import ContentDigest
from shoal.data.groups import REMEDY, GroupReader, Part
from shoal.data.skipping import SKIP, Skipped, check_skips, fingerprint, read_skips, write_skips
from shoal.errors import DataError

THREADS = 8
_AHEAD = 3
"""Row groups in memory for each thread."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    file: str
    """Relative to the folder of the data set."""
    row_group: int | None
    """None: the file as a whole."""
    rows: int
    text: str
    skippable: bool
    """Whether a new list mends it: training can do without a row group, or a file whose footer is lost."""

    @property
    def place(self) -> str:
        return self.file if self.row_group is None else f"{self.file}, row group {self.row_group}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What was found in one data set."""

    uri: str
    folder: str
    filesystem: pafs.FileSystem
    columns: tuple[str, ...]
    """Those that were read."""
    files: tuple[str, ...]
    """Relative to the folder."""
    row_groups: int
    samples: int
    """In the row groups that were read, good or bad."""
    read_bytes: int
    """In memory."""
    problems: tuple[Problem, ...]
    """Those that keep training from the data, or would end it."""
    left_out: tuple[Skipped, ...]
    """What the list leaves out already, and rightly."""
    notes: tuple[str, ...]
    """What training passes over: files without rows, row groups that are left out and can be read."""
    digest: str | None
    """The one that a run would record; None if the data cannot be trained on."""
    recomputed: bool
    """Whether the content was hashed again and gave the digest of the manifest."""
    seconds: float

    @property
    def good(self) -> bool:
        return not self.problems


def verify(
    uri: str,
    columns: Sequence[str] = (),
    *,
    raw: bool = False,
    filesystem: pafs.FileSystem | None = None,
    threads: int = THREADS,
    progress: Callable[[int, int, int], None] = lambda done, all, nbytes: None,
) -> Verified:
    """Read every row group of the Parquet at `uri` and check what training relies on.

    `columns`: those to read; none: all that hold numbers. `raw`: they are for transforms, and may hold anything, of any
    length. Checked: footers; the same types in all files; that pages decode (with their checksums, where the writer
    wrote them); no missing values; one length for all lists of a column; minimum, maximum and missing values as the
    footers say; for prepared data the number of samples and the digest of the content. `progress` is told row groups
    done, of how many, and bytes in memory that they came to. At most three row groups per thread are held. Raises
    DataError if there are no files, if the storage cannot be listed, or if no file has the columns.
    """
    begun = time.perf_counter()
    filesystem, path = open_uri(uri, filesystem)
    files = list_files(uri, filesystem, path)
    work = _Work(uri, filesystem, path, folder_of(path, files), files, raw)
    work.read_list()
    with ThreadPoolExecutor(threads, thread_name_prefix="shoal-verify") as pool:
        work.read_footers(pool, columns)
        for done, (part, look) in enumerate(_looks(pool, work, _AHEAD * threads), 1):
            work.take(part, look)
            progress(done, len(work.parts), work.read_bytes)
    work.check_shapes()
    recomputed = work.check_manifest()
    return work.conclude(recomputed, time.perf_counter() - begun)


def leave_out(found: Verified) -> list[Skipped]:
    """Write the list of everything that training can do without, in the place of an older one; returns the new ones.

    What an older list says of files that `found` is not about stays. Raises DataError if it cannot be written.
    """
    new = [
        Skipped(
            p.file,
            p.row_group,
            p.rows,
            p.text,
            fingerprint(found.filesystem, str(PurePosixPath(found.folder) / p.file)),
        )
        for p in found.problems
        if p.skippable and p.file != SKIP
    ]
    try:
        others = [e for e in read_skips(found.filesystem, found.folder) if e.file not in found.files]
    except DataError:
        others = []  # it was one of the problems
    write_skips(found.filesystem, found.folder, [*others, *found.left_out, *new])
    return new


@dataclass(frozen=True, slots=True)
class _Look:
    """What was seen in one row group: a problem, or the shapes of its samples."""

    problem: str | None = None
    shapes: Shapes = field(default_factory=dict)
    nbytes: int = 0
    columns: Mapping[str, np.ndarray] | None = None
    """Kept only where the content is to be hashed."""


@dataclass(slots=True)
class _Work:
    """One data set while it is looked at. `look` runs in threads, everything else in the caller's."""

    uri: str
    filesystem: pafs.FileSystem
    path: str
    folder: str
    files: list[str]
    raw: bool
    names: tuple[str, ...] = ()
    parts: list[Part] = field(default_factory=list)
    read_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    listed: dict[tuple[str, int | None], Skipped] = field(default_factory=dict)
    _shapes: dict[Part, Shapes] = field(default_factory=dict)
    _said: dict[str, Any] | None = None
    _digest: ContentDigest | None = None
    _own: threading.local = field(default_factory=threading.local)

    def read_list(self) -> None:
        """What is left out already; a list that cannot be used is a problem, as it is for a run."""
        try:
            listed = read_skips(self.filesystem, self.folder)
            ours = [e for e in listed if e.file in {below(self.folder, f) for f in self.files}]
            check_skips(self.filesystem, self.folder, ours)
            self.listed = {e.key: e for e in ours}
        except DataError as error:
            self.problems.append(Problem(SKIP, None, 0, str(error), skippable=True))

    def read_footers(self, pool: ThreadPoolExecutor, columns: Sequence[str]) -> None:
        """Which row groups there are to look at. Raises DataError if there is no such column."""
        good: list[tuple[str, Footer]] = []
        for file, footer in zip(self.files, pool.map(self._footer, self.files), strict=True):
            if isinstance(footer, Footer):
                good.append((file, footer))
            else:
                self._add(file, None, 0, footer, skippable=True)
        if not good:
            return
        first_file, first = good[0]
        chosen = choose(self.uri, first.schema, first_file, columns, raw=self.raw)
        self.names = tuple(c.name for c in chosen)
        for file, footer in good:
            try:
                same_types(chosen, first.schema, first_file, footer.schema, file)
            except DataError as error:
                self._add(file, None, sum(footer.rows), str(error), skippable=False)
                continue
            if not sum(footer.rows):
                self.notes.append(f"{below(self.folder, file)} has no rows; training passes over it")
            self.parts += [Part(file, g, rows, footer.file_bytes) for g, rows in enumerate(footer.rows) if rows]
        self._said = prepared_split(self.filesystem, self.path)
        if self._said is not None and not self.raw and set(self.names) == set(first.schema.names):
            self._digest = ContentDigest()

    def _footer(self, file: str) -> Footer | str:
        try:
            return read_footer(self.filesystem, file)
        except DataError as error:
            return str(error)

    def look(self, part: Part) -> _Look:
        """Read one row group; the reader is the thread's own."""
        if not hasattr(self._own, "reader"):
            self._own.reader = GroupReader(self.filesystem, self.names)
        reader: GroupReader = self._own.reader
        try:
            if self.raw:
                return _Look(nbytes=reader.table(part).nbytes)
            columns = reader.read(part)
        except DataError as error:
            return _Look(_without_place(str(error), part))
        return _Look(
            disagreement(reader.metadata(part), columns),
            {name: column.shape[1:] for name, column in columns.items()},
            sum(column.nbytes for column in columns.values()),
            columns if self._digest is not None else None,
        )

    def take(self, part: Part, look: _Look) -> None:
        """The row groups come in file order."""
        self.read_bytes += look.nbytes
        if look.problem is not None:
            self._add(part.file, part.row_group, part.rows, look.problem, skippable=True)
            self._digest = None  # what cannot be read cannot be hashed
            return
        self._shapes[part] = look.shapes
        if self._digest is not None and look.columns is not None:
            self._digest.add(look.columns)

    def check_shapes(self) -> None:
        """All row groups must have samples of one shape; those are right that hold the most rows."""
        for name in self.names if not self.raw else ():
            rows: Counter[tuple[int, ...]] = Counter()
            for part, shapes in self._shapes.items():
                rows[shapes[name]] += part.rows
            if len(rows) < 2:
                continue
            usual = rows.most_common(1)[0][0]
            for part, shapes in self._shapes.items():
                if shapes[name] != usual:
                    said = f"column {name!r} has samples of shape {list(shapes[name])}, most others have {list(usual)}"
                    self._add(part.file, part.row_group, part.rows, f"{said}; pad or cut them", skippable=True)

    def check_manifest(self) -> bool:
        """Compare with what prepared data says of itself; True if its content was hashed and is the same."""
        if self._said is None or any(p.row_group is None for p in self.problems):
            return False
        samples = sum(part.rows for part in self.parts)
        if self._said["samples"] != samples:
            text = f"it says that there are {self._said['samples']} samples, the files hold {samples}"
            self._add_manifest(f"{text}: a file is missing or foreign; copy the folder again, or remove the manifest")
            return False
        if self._digest is None:
            return False
        if self._digest.hexdigest() != self._said["digest"]:
            self._add_manifest("the content has another digest than it says; copy the folder again, or prepare it anew")
            return False
        return True

    def _add_manifest(self, text: str) -> None:
        self.problems.append(Problem(MANIFEST, None, 0, text, skippable=False))

    def conclude(self, recomputed: bool, seconds: float) -> Verified:
        """What was found, less what is left out already."""
        keys = {(p.file, p.row_group) for p in self.problems}
        left = [p for p in self.problems if (p.file, p.row_group) not in self.listed]
        for key, entry in self.listed.items():
            if key not in keys:
                place = entry.file if entry.row_group is None else f"{entry.file}, row group {entry.row_group}"
                self.notes.append(f"{place} is left out by {SKIP}, and can be read: write the list again to use it")
        digest = None
        if not left:
            try:
                digest = read_catalog(self.path, self.names, raw=self.raw, filesystem=self.filesystem).digest
            except DataError as error:  # whatever else a run would refuse
                left.append(Problem(".", None, 0, str(error), skippable=False))
        return Verified(
            uri=self.uri,
            folder=self.folder,
            filesystem=self.filesystem,
            columns=self.names,
            files=tuple(below(self.folder, f) for f in self.files),
            row_groups=len(self.parts),
            samples=sum(part.rows for part in self.parts),
            read_bytes=self.read_bytes,
            problems=tuple(sorted(left, key=lambda p: (p.file, -1 if p.row_group is None else p.row_group))),
            left_out=tuple(e for key, e in self.listed.items() if key in keys),
            notes=tuple(self.notes),
            digest=digest,
            recomputed=recomputed,
            seconds=seconds,
        )

    def _add(self, file: str, row_group: int | None, rows: int, text: str, *, skippable: bool) -> None:
        self.problems.append(Problem(below(self.folder, file), row_group, rows, text, skippable))


def _looks(pool: ThreadPoolExecutor, work: _Work, ahead: int) -> Iterator[tuple[Part, _Look]]:
    """Every row group and what was seen in it, in order; at most `ahead` of them are read and not yet taken."""
    waiting: deque[tuple[Part, Future[_Look]]] = deque()
    for part in work.parts:
        waiting.append((part, pool.submit(work.look, part)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    while waiting:
        first, future = waiting.popleft()
        yield first, future.result()


def _without_place(said: str, part: Part) -> str:
    """What a reader says of a row group, less what stands beside it here: its place, and what a run could do."""
    for place in (f"{part.file}: row group {part.row_group} ", f"{part.file}, row group {part.row_group}: "):
        said = said.removeprefix(place)
    return said.removesuffix(REMEDY)


def disagreement(group: pq.RowGroupMetaData, columns: Mapping[str, np.ndarray]) -> str | None:
    """Where the footer's statistics say something else than the values of `columns` [rows, ...]; None: nowhere."""
    for i in range(group.num_columns):
        leaf = group.column(i)
        name = next((n for n in columns if _holds(n, leaf.path_in_schema)), None)
        said = leaf.statistics if name is not None and leaf.is_stats_set else None
        if name is None or said is None:
            continue
        if said.has_null_count and said.null_count:
            return f"column {name!r} has no missing values, the footer says {said.null_count}; write the file again"
        if not said.has_min_max or not isinstance(said.min, (bool, int, float)):
            continue
        values = columns[name].reshape(-1)
        values = values[~np.isnan(values)] if values.dtype.kind == "f" else values  # statistics leave NaN out
        if len(values) and (values.min() != said.min or values.max() != said.max):
            return (
                f"column {name!r} has values from {values.min()} to {values.max()}, the footer says from {said.min} to "
                f"{said.max}: one of them is damaged; write the file again"
            )
    return None


def _holds(column: str, leaf: str) -> bool:
    """Whether the leaf at this path belongs to a column of numbers or lists: `x`, `x.list.element`."""
    return leaf == column or leaf.startswith(f"{column}.list.")
