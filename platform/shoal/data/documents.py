"""Documents from files: text, JSON lines and Parquet, cut into units that can be read in any order and by anyone."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from shoal.data.catalog import SUFFIXES
from shoal.errors import DataError
from shoal.job.checks import nearest

UNIT_BYTES = 16 << 20
"""Text and JSON lines are read in units of about this size; Parquet by row groups."""
TEXT_DOCUMENT_BYTES = 64 << 10
"""A text file longer than this is cut at line ends into documents of about this size."""

_JSON = (".jsonl", ".ndjson", ".json")
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")
_LOOK = 64 << 10
_NO_TEXT = (pa.ArrowException, OSError)


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a file: bytes [start, stop) (the lines that begin there), or row groups. `stop` None: to the end."""

    filesystem: pafs.FileSystem
    file: str
    kind: Literal["text", "jsonl", "parquet"]
    start: int
    stop: int | None
    bytes: int
    """Size on disk, for progress."""


@dataclass(frozen=True, slots=True)
class Document:
    """One text, known to be UTF-8."""

    text: bytes


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that holds no usable text. `row` counts from 1 within the unit."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Last word of a unit: how many lines or rows it had, so that those of the file's next unit can be numbered."""

    count: int


def find_units(inputs: Sequence[str], text_column: str) -> list[Unit]:
    """The units of `inputs` (files, folders, local globs, URIs), in the order given and sorted within each.

    In a folder every visible file counts: *.parquet, *.jsonl, *.ndjson, *.json (lines), all others as text; each may
    be compressed (.gz, .bz2, .zst, .lz4, .br), which makes it one unit. Raises DataError for what cannot be found.
    """
    units: list[Unit] = []
    for given in inputs:
        for filesystem, file, size in _files(given):
            units += _units(filesystem, file, size, text_column)
    if not units:
        raise DataError(f"{', '.join(inputs) or 'no input'}: nothing to read; name at least one file that is not empty")
    return units


def read_unit(unit: Unit, text_column: str) -> Iterator[Document | Bad | Rows]:
    """The documents and bad rows of `unit` in order, and last its `Rows`. Raises DataError for an unreadable file."""
    try:
        if unit.kind == "parquet":
            yield from _parquet_rows(unit, text_column)
        elif unit.kind == "jsonl":
            yield from _json_lines(_lines(unit), text_column)
        else:
            yield from _text_parts(_lines(unit))
    except _NO_TEXT as error:
        raise DataError(f"{unit.file} cannot be read ({error}); check the file, or leave it out") from None


def _files(given: str) -> Iterator[tuple[pafs.FileSystem, str, int]]:
    if "://" not in given:
        matches = sorted(glob.glob(str(Path(given).expanduser()), recursive=True))
        if not matches:
            parent = Path(given).expanduser().parent
            names = [p.name for p in parent.iterdir()] if parent.is_dir() else []
            raise DataError(f"{given}: no such file or folder{nearest(Path(given).name, names)}")
        for match in matches:
            yield from _below(pafs.LocalFileSystem(), str(Path(match).absolute()), given)
        return
    try:
        filesystem, path = pafs.FileSystem.from_uri(given)
    except (*_NO_TEXT, ValueError) as error:
        raise DataError(f"{given}: pyarrow cannot open this address ({error})") from None
    yield from _below(filesystem, path, given)


def _below(filesystem: pafs.FileSystem, path: str, given: str) -> Iterator[tuple[pafs.FileSystem, str, int]]:
    try:
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{given}: no such file or folder (patterns with * work on local paths only)")
        found = [info]
        if info.type == pafs.FileType.Directory:
            found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    except _NO_TEXT as error:
        raise DataError(f"{given} cannot be listed ({error}); check the permission, credentials and network") from None
    for f in sorted(found, key=lambda f: f.path):
        inner = PurePosixPath(f.path[len(path) :].lstrip("/")) if f.path != path else PurePosixPath("")
        if f.type == pafs.FileType.File and f.size and not any(p[0] in "._" for p in inner.parts):
            yield filesystem, f.path, f.size


def _units(filesystem: pafs.FileSystem, file: str, size: int, text_column: str) -> Iterator[Unit]:
    name = file.lower()
    if name.endswith(SUFFIXES):
        for group, group_bytes in enumerate(_text_groups(filesystem, file, text_column)):
            yield Unit(filesystem, file, "parquet", group, group + 1, group_bytes)
        return
    packed = name.endswith(_COMPRESSED)
    stem = PurePosixPath(name).stem if packed else name
    kind: Literal["jsonl", "text"] = "jsonl" if stem.endswith(_JSON) else "text"
    if packed:
        yield Unit(filesystem, file, kind, 0, None, size)
        return
    for start in range(0, size, UNIT_BYTES):
        stop = min(start + UNIT_BYTES, size)
        yield Unit(filesystem, file, kind, start, stop, stop - start)


def _text_groups(filesystem: pafs.FileSystem, file: str, text_column: str) -> list[int]:
    try:
        metadata = pq.read_metadata(file, filesystem=filesystem)
        schema = metadata.schema.to_arrow_schema()
    except _NO_TEXT as error:
        raise DataError(f"{file} cannot be read as Parquet ({error}); write or copy it again") from None
    if text_column not in schema.names:
        raise DataError(
            f"{file} has no column {text_column!r}; it has {', '.join(schema.names)}"
            f"{nearest(text_column, schema.names)}. Say which one holds the text (--text-column)"
        )
    kind = schema.field(text_column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{file}: column {text_column!r} is {kind}, not string; say which holds text (--text-column)")
    return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]


def _parquet_rows(unit: Unit, text_column: str) -> Iterator[Document | Bad | Rows]:
    with pq.ParquetFile(unit.filesystem.open_input_file(unit.file)) as parquet:
        column = parquet.read_row_group(unit.start, columns=[text_column], use_threads=False).column(0)
    row = 0
    for row, value in enumerate(column, start=1):
        try:
            text = value.as_py()
        except UnicodeDecodeError:
            yield Bad(row, "not UTF-8")
            continue
        yield Bad(row, "the text is missing (null)") if text is None else _encoded(row, text)
    yield Rows(row)


def _encoded(row: int, text: str) -> Document | Bad:
    try:
        return Document(text.encode())
    except UnicodeEncodeError as error:
        return Bad(row, f"not valid Unicode (half of a surrogate pair at character {error.start})")


def _json_lines(raw: bytes, text_column: str) -> Iterator[Document | Bad | Rows]:
    row = 0
    for row, line in enumerate(_split_lines(raw), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except UnicodeDecodeError as error:
            yield Bad(row, f"not UTF-8 (byte {error.start} of the line)")
            continue
        except ValueError as error:
            yield Bad(row, f"invalid JSON ({error})")
            continue
        if not isinstance(value, dict):
            yield Bad(row, f"a JSON object was expected, not {type(value).__name__}")
        elif not isinstance(text := value.get(text_column), str):
            said = f"{text_column!r} is {type(text).__name__}" if text_column in value else f"no field {text_column!r}"
            yield Bad(row, f"{said}, a string was expected")
        else:
            yield _encoded(row, text)
    yield Rows(row)


def _text_parts(raw: bytes) -> Iterator[Document | Bad | Rows]:
    start, row = 0, 1
    while start < len(raw):
        end = raw.find(b"\n", min(start + TEXT_DOCUMENT_BYTES, len(raw)) - 1) + 1 or len(raw)
        part = raw[start:end]
        try:
            part.decode()
            yield Document(part)
        except UnicodeDecodeError as error:
            yield Bad(row + part.count(b"\n", 0, error.start), "not UTF-8; convert the file, or leave it out")
        start, row = end, row + part.count(b"\n")
    yield Rows(row - 1)


def _split_lines(raw: bytes) -> Iterator[bytes]:
    """Lines without their ends; unlike `splitlines`, only at newlines, so that units agree on what a line is."""
    start = 0
    while start < len(raw):
        end = raw.find(b"\n", start)
        end = len(raw) if end < 0 else end
        yield raw[start:end]
        start = end + 1


def _lines(unit: Unit) -> bytes:
    """The lines that begin in [start, stop) of the file, whole."""
    if unit.stop is None:
        with unit.filesystem.open_input_stream(unit.file, compression="detect") as stream:
            return stream.read()
    with unit.filesystem.open_input_file(unit.file) as handle:
        begin, end = (_line_start(handle, at) for at in (unit.start, unit.stop))
        return handle.read_at(end - begin, begin)


def _line_start(handle: pa.NativeFile, at: int) -> int:
    """Where the first line begins that begins at or after byte `at`; the file's end if none does."""
    if at == 0:
        return 0
    size, look = handle.size(), at - 1
    while look < size:
        found = handle.read_at(min(_LOOK, size - look), look).find(b"\n")
        if found >= 0:
            return look + found + 1
        look += _LOOK
    return size
