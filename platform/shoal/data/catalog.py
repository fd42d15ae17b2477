"""The catalog of a Parquet data set: files, row groups, columns and a digest, from the files' footers alone."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from shoal.data.columns import Column, describe
from shoal.data.order import Order
from shoal.errors import DataError
from shoal.job.checks import nearest

SUFFIXES = (".parquet", ".parq", ".pq")
METADATA_KEY = b"shoal"
"""Key in a Parquet footer under which prepared data carries a JSON object about itself."""
MANIFEST = "manifest.json"

_THREADS = 16
_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Group:
    """One row group: `files[file]`, its `row_group`-th, with `rows` samples."""

    file: int
    row_group: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """A Parquet data set as seen from its footers. Survives pickling."""

    uri: str
    filesystem: pafs.FileSystem
    files: tuple[str, ...] = field(repr=False)
    """Paths in `filesystem`, sorted."""
    columns: tuple[Column, ...]
    """The columns that training needs."""
    groups: tuple[Group, ...] = field(repr=False)
    """All row groups that are not empty, in file order."""
    samples: int
    digest: str
    """SHA-256 of the content: the prepared data's own, else of all footers (statistics and offsets of every column)."""
    sample_bytes: int
    """Bytes of one sample in memory (estimated where lists have no fixed size)."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Of prepared text: `block`, `vocabulary`, `bytes_per_token`, `tokenizer`."""

    @property
    def local(self) -> bool:
        """True if only machines that share this machine's disk can read the files."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    def order(self, *, seed: int, shuffle: bool = True, window: int = 8192) -> Order:
        """The order of this data set's samples."""
        return Order(group_rows=tuple(g.rows for g in self.groups), seed=seed, shuffle=shuffle, window=window)


@dataclass(frozen=True, slots=True)
class _Footer:
    schema: pa.Schema
    rows: tuple[int, ...]
    group_bytes: int
    sha256: bytes
    about: dict[str, Any]


def read_catalog(uri: str, columns: Sequence[str] = (), *, filesystem: pafs.FileSystem | None = None) -> Catalog:
    """Read the footers of the Parquet file or folder at `uri`: a local path, `s3://`, `gs://`, whatever pyarrow reads.

    `columns` are those that training needs; none: all that hold numbers. With `filesystem`, `uri` is a path in it.
    Raises DataError (path, reason, remedy) for anything that would keep training from reading the data.
    """
    filesystem, path = _open(uri, filesystem)
    files = _list(uri, filesystem, path)
    with ThreadPoolExecutor(min(_THREADS, len(files))) as pool:
        footers = list(pool.map(lambda f: _read_footer(filesystem, f), files))
    chosen = _choose(uri, footers[0].schema, files[0], columns)
    for file, footer in zip(files[1:], footers[1:], strict=True):
        _same_types(chosen, footers[0].schema, files[0], footer.schema, file)
    groups = tuple(
        Group(f, g, rows) for f, footer in enumerate(footers) for g, rows in enumerate(footer.rows) if rows > 0
    )
    samples = sum(g.rows for g in groups)
    if not samples:
        raise DataError(f"{uri}: {len(files)} Parquet file(s) without a single row; write some samples first")
    known = [c.sample_bytes for c in chosen]
    estimate = sum(f.group_bytes for f in footers) // samples
    return Catalog(
        uri=uri,
        filesystem=filesystem,
        files=tuple(files),
        columns=chosen,
        groups=groups,
        samples=samples,
        digest=_prepared_digest(filesystem, path, samples) or _derived_digest(path, files, footers),
        sample_bytes=max(1, estimate if None in known else sum(k for k in known if k is not None)),
        metadata=_about(footers),
    )


def _open(uri: str, filesystem: pafs.FileSystem | None) -> tuple[pafs.FileSystem, str]:
    if filesystem is not None:
        return filesystem, uri
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{uri}: pyarrow cannot open this address ({_first_line(error)}); use a local path, file://, s3:// or gs://"
        ) from None


def _list(uri: str, filesystem: pafs.FileSystem, path: str) -> list[str]:
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [path]
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{uri} does not exist{_neighbours(filesystem, path)}; check the path and its spelling")
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{uri} cannot be listed ({_first_line(error)}); check the permission, credentials and network"
        ) from None
    visible = [
        f.path
        for f in found
        if f.type == pafs.FileType.File and not any(p[0] in "._" for p in _below(path, f.path).parts)
    ]
    files = sorted(f for f in visible if f.lower().endswith(SUFFIXES))
    if not files:
        saw = (
            f"it has {len(visible)} other file(s), for example {PurePosixPath(visible[0]).name}" if visible else "empty"
        )
        raise DataError(
            f"{uri} holds no Parquet files ({saw}); name a folder with *.parquet, or make one from text with "
            f"`shoal data prepare`"
        )
    return files


def _neighbours(filesystem: pafs.FileSystem, path: str) -> str:
    parent, name = str(PurePosixPath(path).parent), PurePosixPath(path).name
    try:
        names = [PurePosixPath(f.path).name for f in filesystem.get_file_info(pafs.FileSelector(parent))]
    except (pa.ArrowException, OSError):
        return f", nor can {parent} be listed"
    return nearest(name, names)


def _read_footer(filesystem: pafs.FileSystem, file: str) -> _Footer:
    try:
        with filesystem.open_input_file(file) as handle:
            size = handle.size()
            tail = handle.read_at(8, size - 8) if size >= 12 else b""
            if tail[4:] != _MAGIC:
                raise DataError(f"{file} is not a Parquet file or is cut off ({size} bytes); write or copy it again")
            length = struct.unpack("<I", tail[:4])[0]
            footer = handle.read_at(length, max(0, size - 8 - length))
            metadata = pq.ParquetFile(handle).metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return _Footer(
            schema=metadata.schema.to_arrow_schema(),
            rows=tuple(g.num_rows for g in groups),
            group_bytes=sum(g.total_byte_size for g in groups),
            sha256=hashlib.sha256(size.to_bytes(8, "little") + footer).digest(),
            about=json.loads((metadata.metadata or {}).get(METADATA_KEY, b"{}")),
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} cannot be read as Parquet ({_first_line(error)}); write or copy it again, or take "
            f"it out of the folder"
        ) from None


def _choose(uri: str, schema: pa.Schema, file: str, wanted: Sequence[str]) -> tuple[Column, ...]:
    if not wanted:
        every = tuple(c for f in schema if (c := describe(f.name, f.type)) is not None)
        if not every:
            raise DataError(f"{uri} has no column of numbers (it has {_typed(schema)}); training needs at least one")
        return every
    chosen = []
    for name in wanted:
        if name not in schema.names:
            raise DataError(
                f"{file} has no column {name!r}; it has {_typed(schema)}{nearest(name, schema.names)}. Rename the "
                f"column, or name the right one in the task's `columns`"
            )
        column = describe(name, schema.field(name).type)
        if column is None:
            raise DataError(
                f"{file}: column {name!r} is {schema.field(name).type}, and a batch needs numbers or lists of numbers; "
                f"convert it first (text: `shoal data prepare`)"
            )
        chosen.append(column)
    return tuple(chosen)


def _same_types(columns: Sequence[Column], first: pa.Schema, first_file: str, schema: pa.Schema, file: str) -> None:
    for column in columns:
        want = first.field(column.name).type
        has = schema.field(column.name).type if column.name in schema.names else None
        if has != want:
            said = f"has it as {has}" if has is not None else f"has no such column (it has {_typed(schema)})"
            raise DataError(
                f"the files' schemas differ: column {column.name!r} is {want} in {first_file}, but {file} {said}; "
                f"write all files with one schema, or keep different data in different folders"
            )


def _prepared_digest(filesystem: pafs.FileSystem, path: str, samples: int) -> str | None:
    """What the manifest beside a prepared split says, if it speaks of this many samples."""
    folder = PurePosixPath(path)
    try:
        with filesystem.open_input_file(str(folder.parent / MANIFEST)) as handle:
            split = json.loads(handle.read())["splits"][folder.name]
        return str(split["digest"]) if split["samples"] == samples else None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None  # no manifest, or another tool's: the footers speak for themselves


def _derived_digest(path: str, files: Sequence[str], footers: Sequence[_Footer]) -> str:
    total = hashlib.sha256()
    for file, footer in zip(files, footers, strict=True):
        total.update(str(_below(path, file)).encode() + b"\0" + footer.sha256)
    return total.hexdigest()


def _about(footers: Sequence[_Footer]) -> dict[str, Any]:
    """What prepared data says about itself; the ratio of bytes to tokens is taken over all files."""
    about = {k: v for k, v in footers[0].about.items() if k not in ("text_bytes", "tokens")}
    tokens = sum(f.about.get("tokens", 0) for f in footers)
    if tokens:
        about["bytes_per_token"] = sum(f.about.get("text_bytes", 0) for f in footers) / tokens
    return about


def _below(folder: str, file: str) -> PurePosixPath:
    if file == folder:
        return PurePosixPath(PurePosixPath(file).name)
    return PurePosixPath(file[len(folder) :].lstrip("/"))


def _typed(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema) or "no columns"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
