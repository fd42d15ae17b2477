"""What a data set is, from its footers and the few row groups that hold the samples shown: `shoal data inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from shoal.data.catalog import MANIFEST, Catalog, open_uri, prepared_split, read_catalog, read_footer, read_manifest
from shoal.data.columns import describe
from shoal.data.groups import GroupReader, part_of
from shoal.data.locating import Place
from shoal.data.sources import BUILTIN, resolve
from shoal.job.spec import Data


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """One column of the files."""

    name: str
    arrow: str
    """Its type in the files."""
    dtype: str | None
    """NumPy's name for what a task gets; None: it cannot become a batch, and training does not read it."""
    shape: tuple[int | None, ...]
    """Of one sample; None: a list, whose length only the data tells."""
    used: bool
    """Whether training would read it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample, as a task gets it."""

    index: int
    """Among all samples, in file order."""
    place: Place
    values: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """One data set."""

    catalog: Catalog
    columns: tuple[ColumnFacts, ...]
    manifest: dict[str, Any] | None
    """What the manifest beside the data says, `split` of these; None: Shoal did not prepare them."""
    samples: tuple[Sample, ...]


def splits(uri: str, root: Path) -> dict[str, str]:
    """What `uri` names: `train` and `validation` of prepared or built-in data; else itself, under the name "".

    Built-in corpora are written under `root` on first use. Raises ConfigError or DataError.
    """
    if uri.startswith(BUILTIN):
        sources = resolve(Data(train=uri), root)
        found = {"train": sources.train, "validation": sources.validation}
        return {name: catalog.uri for name, catalog in found.items() if catalog is not None}
    filesystem, path = open_uri(uri)
    names = ["train", "validation"]
    infos = filesystem.get_file_info([str(PurePosixPath(path) / name) for name in (MANIFEST, *names)])
    if infos[0].type != pafs.FileType.File or infos[1].type != pafs.FileType.Directory:
        return {"": uri}
    empty = {name for name in names if (prepared_split(filesystem, f"{path}/{name}") or {}).get("samples") == 0}
    return {
        name: f"{uri.rstrip('/')}/{name}"
        for name, info in zip(names, infos[1:], strict=True)
        if info.type == pafs.FileType.Directory and name not in empty
    }


def inspect(
    uri: str, columns: Sequence[str] = (), *, samples: int = 3, filesystem: pafs.FileSystem | None = None
) -> Inspection:
    """Look at the Parquet at `uri`: all footers, and the row groups of `samples` samples that are spread evenly.

    `columns` are those that training reads; none: all that hold numbers. Raises DataError for data that a run would
    refuse, or whose samples cannot be read.
    """
    catalog = read_catalog(uri, columns, filesystem=filesystem)
    path = uri if filesystem is not None else open_uri(uri)[1]
    schema = read_footer(catalog.filesystem, catalog.files[0]).schema
    return Inspection(
        catalog=catalog,
        columns=tuple(_facts(field, catalog.column_names) for field in schema),
        manifest=read_manifest(catalog.filesystem, path),
        samples=tuple(_read(catalog, spread(catalog.samples, samples))),
    )


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices of range(total), the first one among them, evenly far apart."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def _facts(field: pa.Field, used: Sequence[str]) -> ColumnFacts:
    column = describe(field.name, field.type)
    return ColumnFacts(
        name=field.name,
        arrow=str(field.type),
        dtype=column.dtype if column else None,
        shape=column.shape if column else (),
        used=field.name in used,
    )


def _read(catalog: Catalog, indices: Sequence[int]) -> Iterator[Sample]:
    """The samples at `indices` (ascending, in file order); every row group that holds one is read once."""
    reader = GroupReader(catalog.filesystem, catalog.column_names)
    ends = np.cumsum([g.rows for g in catalog.groups])
    at = -1
    columns: dict[str, np.ndarray] = {}
    for index in indices:
        g = int(np.searchsorted(ends, index, side="right"))
        group = catalog.groups[g]
        if g != at:
            at, columns = g, reader.read(part_of(catalog, group))
        row = index - int(ends[g] - group.rows)
        yield Sample(
            index, Place(catalog.files[group.file], group.row_group, row), {name: c[row] for name, c in columns.items()}
        )
