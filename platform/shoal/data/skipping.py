"""Bad row groups that a data set leaves out: the list `_skip.json` beside its files.

`shoal data verify --write-skip` writes it, `read_catalog` honours it and puts it into the digest. So the order stays
arithmetic over the row groups that are left, equal for everybody who reads the data, and a run that began without the
list, or with another one, is refused by the digest instead of going on with other samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from shoal.errors import DataError

SKIP = "_skip.json"
"""Name of the list, in the folder of the files."""

_FORMAT, _VERSION = "shoal-skip", 1
_TAIL = 64 << 10


@dataclass(frozen=True, slots=True)
class Skipped:
    """One thing that is left out."""

    file: str
    """Relative to the folder of the list."""
    row_group: int | None
    """None: the whole file, whose footer cannot be read."""
    rows: int
    """0 where that is not known."""
    reason: str
    fingerprint: str
    """Of the file as it was when it was looked at (see `fingerprint`)."""

    @property
    def key(self) -> tuple[str, int | None]:
        return self.file, self.row_group


def read_skips(filesystem: pafs.FileSystem, folder: str) -> tuple[Skipped, ...]:
    """The list in `folder`, sorted; empty if there is none. Raises DataError for one that cannot be understood."""
    place = str(PurePosixPath(folder) / SKIP)
    try:
        if filesystem.get_file_info(place).type == pafs.FileType.NotFound:
            return ()
        with filesystem.open_input_file(place) as handle:
            said: Any = json.loads(handle.read())
        if (said["format"], said["version"]) != (_FORMAT, _VERSION):
            raise ValueError(f"format {said['format']!r}, version {said['version']!r}")
        return _sorted([Skipped(**entry) for entry in said["skip"]])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{place} is no list of row groups to leave out ({error}); write it again with `shoal data verify "
            f"--write-skip`, or remove it"
        ) from None


def write_skips(filesystem: pafs.FileSystem, folder: str, entries: Sequence[Skipped]) -> str:
    """Replace the list in `folder`; without entries there is none afterwards. Returns its path.

    Raises DataError if the folder cannot be written.
    """
    place = str(PurePosixPath(folder) / SKIP)
    said = {"format": _FORMAT, "version": _VERSION, "skip": [asdict(e) for e in _sorted(entries)]}
    try:
        if entries:
            with filesystem.open_output_stream(f"{place}.new") as out:
                out.write(json.dumps(said, indent=1).encode() + b"\n")
            filesystem.move(f"{place}.new", place)
        elif filesystem.get_file_info(place).type != pafs.FileType.NotFound:
            filesystem.delete_file(place)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{place} cannot be written ({error}); copy the data to a place that is yours, or take the bad files out"
        ) from None
    return place


def fingerprint(filesystem: pafs.FileSystem, file: str) -> str:
    """16 hex digits of a file's size and end, where the footer is: tells an old copy from a new one without reading
    it whole. Raises DataError if the file cannot be opened."""
    try:
        with filesystem.open_input_file(file) as handle:
            size = handle.size()
            tail = handle.read_at(min(size, _TAIL), max(0, size - _TAIL))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be opened ({error}); check the storage, then verify the data again") from None
    return hashlib.sha256(size.to_bytes(8, "little") + tail).hexdigest()[:16]


def check_skips(filesystem: pafs.FileSystem, folder: str, entries: Sequence[Skipped]) -> None:
    """Raise DataError if a file is no longer the one that was looked at."""
    for entry in {e.file: e for e in entries}.values():
        if fingerprint(filesystem, str(PurePosixPath(folder) / entry.file)) != entry.fingerprint:
            raise DataError(
                f"{PurePosixPath(folder) / SKIP} leaves out parts of {entry.file}, but that file has changed since the "
                f"list was made; look again with `shoal data verify --write-skip`, or remove the list"
            )


def digest_without(digest: str, entries: Sequence[Skipped]) -> str:
    """SHA-256 of data with `digest` whose `entries` are left out."""
    said = "".join(f"{e.file}\0{e.row_group}\0" for e in _sorted(entries))
    return hashlib.sha256(f"{digest}\0{said}".encode()).hexdigest()


def _sorted(entries: Sequence[Skipped]) -> tuple[Skipped, ...]:
    return tuple(sorted(entries, key=lambda e: (e.file, -1 if e.row_group is None else e.row_group)))
