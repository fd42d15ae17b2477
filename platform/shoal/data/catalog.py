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

from shoal.data.columns import Column, describe, describe_raw
from shoal.data.order import Order
from shoal.data.skipping import SKIP, Skipped, check_skips, digest_without, read_skips
from shoal.data.transforming import Transforming
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
    file_bytes: tuple[int, ...] = field(repr=False)
    """Size of each of them."""
    columns: tuple[Column, ...]
    """The columns that training needs."""
    groups: tuple[Group, ...] = field(repr=False)
    """All row groups that are not empty and not left out, in file order."""
    samples: int
    digest: str
    """SHA-256 of the content: the prepared data's own, else of all footers (statistics and offsets of every column);
    where something is left out, also of what that is."""
    sample_bytes: int
    """Bytes of one sample in memory (estimated where lists have no fixed size)."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """Of prepared text: `block`, `vocabulary`, `bytes_per_token`, `tokenizer`."""
    skipped: tuple[Skipped, ...] = ()
    """Bad row groups that the list beside the files leaves out."""
    transforming: Transforming | None = None
    """What makes samples of the rows; `columns` and `sample_bytes` are those of the samples. None: rows are samples."""

    @property
    def local(self) -> bool:
        """True if only machines that share this machine's disk can read the files."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.columns)

    @property
    def raw(self) -> tuple[Column, ...]:
        """The columns that are read from the files."""
        return self.columns if self.transforming is None else self.transforming.raw

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in memory, as it is read."""
        return self.sample_bytes if self.transforming is None else self.transforming.raw_bytes

    def order(self, *, seed: int, **options: Any) -> Order:
        """The order of this data set's samples; `options` are further fields of `Order`."""
        return Order(group_rows=tuple(g.rows for g in self.groups), seed=seed, **options)


@dataclass(frozen=True, slots=True)
class Footer:
    """What is needed of one file's footer."""

    schema: pa.Schema
    rows: tuple[int, ...]
    """Of each row group."""
    group_bytes: int
    """Of all row groups, not compressed."""
    file_bytes: int
    sha256: bytes
    about: dict[str, Any]
    """What prepared data says about itself."""


def read_catalog(
    uri: str, columns: Sequence[str] = (), *, filesystem: pafs.FileSystem | None = None, raw: bool = False
) -> Catalog:
    """Read the footers of the Parquet file or folder at `uri`: a local path, `s3://`, `gs://`, whatever pyarrow reads.

    `columns` are those that training needs; none: all that hold numbers. With `filesystem`, `uri` is a path in it.
    `raw`: the columns are for transforms, and hold what they like; none: all.
    Raises DataError (path, reason, remedy) for anything that would keep training from reading the data.
    """
    filesystem, path = open_uri(uri, filesystem)
    listed = list_files(uri, filesystem, path)
    folder = folder_of(path, listed)
    skipped = _left_out(filesystem, folder, listed)
    unreadable = {e.file for e in skipped if e.row_group is None}
    files = [f for f in listed if below(folder, f) not in unreadable]
    with ThreadPoolExecutor(min(_THREADS, len(listed))) as pool:
        footers = list(pool.map(lambda f: read_footer(filesystem, f), files))
    everything = sum(sum(f.rows) for f in footers)
    out = {e.key for e in skipped}
    groups = tuple(
        Group(f, g, rows)
        for f, (file, footer) in enumerate(zip(files, footers, strict=True))
        for g, rows in enumerate(footer.rows)
        if rows > 0 and (below(folder, file), g) not in out
    )
    samples = sum(g.rows for g in groups)
    if not samples:
        less = f" that is not left out by {folder}/{SKIP}" if skipped else ""
        raise DataError(f"{uri}: {len(listed)} Parquet file(s) without a single row{less}; write some samples first")
    chosen = choose(uri, footers[0].schema, files[0], columns, raw=raw)
    for file, footer in zip(files[1:], footers[1:], strict=True):
        same_types(chosen, footers[0].schema, files[0], footer.schema, file)
    known = [c.sample_bytes for c in chosen]
    estimate = sum(f.group_bytes for f in footers) // everything
    digest = _prepared_digest(filesystem, path, everything) or _derived_digest(path, files, footers)
    return Catalog(
        uri=uri,
        filesystem=filesystem,
        files=tuple(files),
        file_bytes=tuple(f.file_bytes for f in footers),
        columns=chosen,
        groups=groups,
        samples=samples,
        digest=digest_without(digest, skipped) if skipped else digest,
        sample_bytes=max(1, estimate if None in known else sum(k for k in known if k is not None)),
        metadata=_about(footers),
        skipped=skipped,
    )


def _left_out(filesystem: pafs.FileSystem, folder: str, files: Sequence[str]) -> tuple[Skipped, ...]:
    """What the list in `folder` says of `files`. Raises DataError for a file that changed since."""
    skipped = read_skips(filesystem, folder)
    if skipped:
        names = {below(folder, f) for f in files}
        skipped = tuple(e for e in skipped if e.file in names)
        check_skips(filesystem, folder, skipped)
    return skipped


def open_uri(uri: str, filesystem: pafs.FileSystem | None = None) -> tuple[pafs.FileSystem, str]:
    """The file system of `uri` and the path in it. With `filesystem`, `uri` is that path. Raises DataError."""
    if filesystem is not None:
        return filesystem, uri
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        return pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{uri}: pyarrow cannot open this address ({first_line(error)}); use a local path, file://, s3:// or gs://"
        ) from None


def list_files(uri: str, filesystem: pafs.FileSystem, path: str) -> list[str]:
    """The Parquet files at or below `path`, sorted. Raises DataError, which names `uri`, if there are none."""
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return [path]
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{uri} does not exist{_neighbours(filesystem, path)}; check the path and its spelling")
        found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{uri} cannot be listed ({first_line(error)}); check the permission, credentials and network"
        ) from None
    visible = [
        f.path
        for f in found
        if f.type == pafs.FileType.File and not any(p[0] in "._" for p in PurePosixPath(below(path, f.path)).parts)
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


def read_footer(filesystem: pafs.FileSystem, file: str) -> Footer:
    """The footer of one Parquet file. Raises DataError if there is none that can be read."""
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
        return Footer(
            schema=metadata.schema.to_arrow_schema(),
            rows=tuple(g.num_rows for g in groups),
            group_bytes=sum(g.total_byte_size for g in groups),
            file_bytes=size,
            sha256=hashlib.sha256(size.to_bytes(8, "little") + footer).digest(),
            about=json.loads((metadata.metadata or {}).get(METADATA_KEY, b"{}")),
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} cannot be read as Parquet ({first_line(error)}); write or copy it again, or take "
            f"it out of the folder"
        ) from None


def choose(uri: str, schema: pa.Schema, file: str, wanted: Sequence[str], *, raw: bool = False) -> tuple[Column, ...]:
    """The columns `wanted`, or all of numbers (`raw`: all). Raises DataError for one that is missing or, unless `raw`,
    can be no batch."""
    if raw and not wanted:
        wanted = schema.names
    if not wanted:
        every = tuple(c for f in schema if (c := describe(f.name, f.type)) is not None)
        if not every:
            raise DataError(f"{uri} has no column of numbers (it has {_typed(schema)}); training needs at least one")
        return every
    chosen = []
    for name in wanted:
        if name not in schema.names:
            said_in = "data.columns" if raw else "the task's `columns`"
            raise DataError(
                f"{file} has no column {name!r}; it has {_typed(schema)}{nearest(name, schema.names)}. Rename the "
                f"column, or name the right one in {said_in}"
            )
        column = (describe_raw if raw else describe)(name, schema.field(name).type)
        if column is None:
            raise DataError(
                f"{file}: column {name!r} is {schema.field(name).type}, and a batch needs numbers or lists of numbers; "
                f"convert it first (text: `shoal data prepare`), or in a function of your own (data.transforms)"
            )
        chosen.append(column)
    return tuple(chosen)


def same_types(columns: Sequence[Column], first: pa.Schema, first_file: str, schema: pa.Schema, file: str) -> None:
    """Raise DataError unless `file` has the columns with the types that they have in the first file."""
    for column in columns:
        want = first.field(column.name).type
        has = schema.field(column.name).type if column.name in schema.names else None
        if has != want:
            said = f"has it as {has}" if has is not None else f"has no such column (it has {_typed(schema)})"
            raise DataError(
                f"the files' schemas differ: column {column.name!r} is {want} in {first_file}, but {file} {said}; "
                f"write all files with one schema, or keep different data in different folders"
            )


def read_manifest(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    """The manifest beside the prepared split at `path`; None if there is none that speaks of it."""
    folder = PurePosixPath(path)
    try:
        with filesystem.open_input_file(str(folder.parent / MANIFEST)) as handle:
            said = json.loads(handle.read())
        split = said["splits"][folder.name]
        return {**said, "split": {**split, "digest": str(split["digest"]), "samples": int(split["samples"])}}
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None  # no manifest, or another tool's: the footers speak for themselves


def prepared_split(filesystem: pafs.FileSystem, path: str) -> dict[str, Any] | None:
    """What the manifest beside the prepared split at `path` says of it; None: there is none."""
    said = read_manifest(filesystem, path)
    return said["split"] if said is not None else None


def _prepared_digest(filesystem: pafs.FileSystem, path: str, samples: int) -> str | None:
    """The manifest's, if it speaks of this many samples."""
    split = prepared_split(filesystem, path)
    return split["digest"] if split is not None and split["samples"] == samples else None


def _derived_digest(path: str, files: Sequence[str], footers: Sequence[Footer]) -> str:
    total = hashlib.sha256()
    for file, footer in zip(files, footers, strict=True):
        total.update(below(path, file).encode() + b"\0" + footer.sha256)
    return total.hexdigest()


def _about(footers: Sequence[Footer]) -> dict[str, Any]:
    """What prepared data says about itself; ratios to the number of tokens are taken over all files."""
    about = {k: v for k, v in footers[0].about.items() if k not in ("text_bytes", "tokens", "padding")}
    tokens, padding = (sum(f.about.get(name, 0) for f in footers) for name in ("tokens", "padding"))
    if tokens:
        about["bytes_per_token"] = sum(f.about.get("text_bytes", 0) for f in footers) / tokens
        if padding:
            about["packing_rate"] = tokens / (tokens + padding)
    return about


def folder_of(path: str, files: Sequence[str]) -> str:
    """The folder that `files`, found at `path`, lie in: `path` itself unless that is the file."""
    return str(PurePosixPath(path).parent) if list(files) == [path] else path


def below(folder: str, file: str) -> str:
    """`file` relative to `folder`; its name alone if that is the file itself."""
    if file == folder:
        return PurePosixPath(file).name
    return file[len(folder) :].lstrip("/")


def _typed(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} ({f.type})" for f in schema) or "no columns"


def first_line(error: BaseException) -> str:
    """What an error says, shortly."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
