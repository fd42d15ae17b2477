"""Reads any part of a checkpoint, however it was divided when it was written."""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from shoal.errors import CheckpointError
from shoal.state.layout import Extent, offsets
from shoal.state.manifest import FileEntry, parameter_table
from shoal.state.safetensors_file import CHUNK, Header, read_header, tensor_bytes
from shoal.state.shard_file import BUFFER, STATE
from shoal.state.storage import Storage, explained
from shoal.state.store import read_manifest

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs

_REMOTE_READS = 8
"""Range reads at a time from remote storage, where one stream is slower than the network."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Elements [start, stop) of one parameter are elements [at, at + stop - start) of file `file`."""

    start: int
    stop: int
    file: int
    at: int


@dataclass(slots=True)
class _Run:
    """`count` neighbouring elements of file `file` from `source` on, which go to the result from `target` on."""

    file: int
    source: int
    target: int
    count: int


class CheckpointReader:
    """A checkpoint, open for reading: only the bytes that are asked for are read. For one thread at a time.

    Raises CheckpointError at once if there is no whole manifest at `uri`, and later by the name of the shard file that
    is missing, truncated or damaged.
    """

    def __init__(self, uri: str | os.PathLike[str], filesystem: pafs.FileSystem | None = None) -> None:
        self._folder = Storage(uri, filesystem)
        self.manifest = read_manifest(self._folder.uri, filesystem)
        self._pieces = _index(self.manifest.files)
        self._open: dict[int, tuple[pa.NativeFile, Header]] = {}

    @property
    def uri(self) -> str:
        return self._folder.uri

    def read(self, key: str, extents: Sequence[Extent]) -> torch.Tensor:
        """The extents' elements one after another, 1-D fp32. This is an engine's `ReadState`.

        CheckpointError if the checkpoint has no such key or not all of these elements, or if a file is damaged.
        """
        if key not in self.manifest.keys:
            raise CheckpointError(
                f"checkpoint {self.uri} has no {key!r}, only {', '.join(self.manifest.keys) or 'nothing'}: it was "
                f"written with another optimizer; go on with that optimizer, or start a new run"
            )
        out = torch.empty(sum(e.count for e in extents), dtype=torch.float32)
        view = tensor_bytes(out)
        for run in self._runs(extents):
            file, header = self._shard(run.file)
            where = self._folder.uri_of(self.manifest.files[run.file].name)
            begin = header.tensors[STATE + key].start + 4 * run.source
            self._fill(file, begin, view[4 * run.target : 4 * (run.target + run.count)], where)
        return out

    def buffers(self) -> dict[str, torch.Tensor]:
        """The model's persistent buffers, whole, of their own types."""
        out = {}
        for number, entry in enumerate(self.manifest.files):
            for name in entry.buffers:
                file, header = self._shard(number)
                place = header.tensors[BUFFER + name]
                out[name] = torch.empty(place.shape, dtype=place.dtype)
                self._fill(file, place.start, tensor_bytes(out[name]), self._folder.uri_of(entry.name))
        return out

    def check_model(self, digest: str, table: Iterable[Sequence[Any]]) -> None:
        """Raise CheckpointError naming the first parameters that differ, unless the checkpoint fits this model.

        `table` has rows of (name, elements, shape). Equal digests need no comparison; where only digests differ (the
        parameters' types, say) the state fits all the same, because it is kept in fp32.
        """
        if digest == self.manifest.model_digest:
            return
        here = {p.name: p.shape for p in parameter_table(table)}
        there = {p.name: p.shape for p in self.manifest.parameters}
        faults = [f"{n} has shape {here[n]} here, {there[n]} there" for n in here if n in there and here[n] != there[n]]
        faults += [f"{n} is not in the checkpoint" for n in here if n not in there]
        faults += [f"{n} is only in the checkpoint" for n in there if n not in here]
        if faults:
            more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
            raise CheckpointError(
                f"{self.uri} is a checkpoint from another model (job {self.manifest.job_name!r}): "
                f"{'; '.join(faults[:3])}{more}. Use the task it was written with, or start a new run"
            )

    def verify(self, rank: int = 0, size: int = 1) -> None:
        """Read the shard files through and compare size and SHA-256; CheckpointError names the first that is damaged.

        Members of a view can share the work: member `rank` of `size` takes every `size`-th file.
        """
        for entry in self.manifest.files[rank::size]:
            where = self._folder.uri_of(entry.name)
            self._check_size(entry)
            digest = hashlib.sha256()
            with explained("read", where), self._folder.open(entry.name) as file:
                for begin in range(0, entry.bytes, CHUNK):
                    digest.update(file.read_at(min(CHUNK, entry.bytes - begin), begin))
            if digest.hexdigest() != entry.sha256:
                raise CheckpointError(
                    f"{where} is damaged: its SHA-256 is {digest.hexdigest()[:12]}…, the manifest says "
                    f"{entry.sha256[:12]}…; use another checkpoint"
                )

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        for file, _ in self._open.values():
            file.close()
        self._open.clear()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _runs(self, extents: Sequence[Extent]) -> list[_Run]:
        """Where the elements are, in the order of the result; neighbours in file and result are read in one go."""
        runs: list[_Run] = []
        for extent, target in zip(extents, offsets(extents), strict=True):
            for piece, start, stop in self._find(extent):
                source, to = piece.at + start - piece.start, target + start - extent.start
                last = runs[-1] if runs else None
                if (
                    last is not None
                    and last.file == piece.file
                    and (last.source + last.count, last.target + last.count) == (source, to)
                ):
                    last.count += stop - start
                else:
                    runs.append(_Run(piece.file, source, to, stop - start))
        return runs

    def _find(self, extent: Extent) -> Iterator[tuple[_Piece, int, int]]:
        """The pieces that make up `extent`, each with the part [start, stop) of the parameter that is meant."""
        pieces = self._pieces.get(extent.name, [])
        at = extent.start
        i = bisect_right(pieces, at, key=lambda p: p.start) - 1
        while at < extent.stop:
            if not (0 <= i < len(pieces) and pieces[i].start <= at < pieces[i].stop):
                known = f"it holds {sum(p.stop - p.start for p in pieces)} elements of it" if pieces else "unknown name"
                raise CheckpointError(
                    f"checkpoint {self.uri} has no elements {at}..{extent.stop - 1} of parameter {extent.name} "
                    f"({known}); it was written by another model: use the task it was written with"
                )
            stop = min(extent.stop, pieces[i].stop)
            yield pieces[i], at, stop
            at, i = stop, i + 1

    def _shard(self, number: int) -> tuple[pa.NativeFile, Header]:
        if number not in self._open:
            entry = self.manifest.files[number]
            where = self._folder.uri_of(entry.name)
            self._check_size(entry)
            file = self._folder.open(entry.name)
            with explained("read", where):
                header = read_header(file, where)
            _check_header(entry, header, where)
            self._open[number] = file, header
        return self._open[number]

    def _check_size(self, entry: FileEntry) -> None:
        (size,) = self._folder.sizes([entry.name])
        if size != entry.bytes:
            where = self._folder.uri_of(entry.name)
            fault = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}: it was truncated"
            raise CheckpointError(f"{where} {fault}; use another checkpoint")

    def _fill(self, file: pa.NativeFile, begin: int, view: memoryview, where: str) -> None:
        def fetch(at: int) -> None:
            want = view[at : at + CHUNK]
            got = file.read_at(len(want), begin + at)
            if len(got) != len(want):
                raise CheckpointError(
                    f"{where} ends at byte {begin + at + len(got)}: truncated; use another checkpoint"
                )
            want[:] = got

        starts = range(0, len(view), CHUNK)
        with explained("read", where):
            if self._folder.is_local or len(starts) < 2:
                for at in starts:
                    fetch(at)
            else:
                with ThreadPoolExecutor(_REMOTE_READS) as pool:
                    list(pool.map(fetch, starts))


def _index(files: Sequence[FileEntry]) -> dict[str, list[_Piece]]:
    pieces: dict[str, list[_Piece]] = {}
    for number, entry in enumerate(files):
        for extent, at in zip(entry.extents, offsets(entry.extents), strict=True):
            if extent.count:
                pieces.setdefault(extent.name, []).append(_Piece(extent.start, extent.stop, number, at))
    for found in pieces.values():
        found.sort(key=lambda p: p.start)
    return pieces


def _check_header(entry: FileEntry, header: Header, where: str) -> None:
    """The file must be the one that the manifest means, and hold what the manifest says."""
    said = json.dumps([[e.name, e.start, e.count] for e in entry.extents])
    elements = (sum(e.count for e in entry.extents),)
    held = {name: (place.dtype, place.shape) for name, place in header.tensors.items()}
    whole = all(held.get(STATE + key) == (torch.float32, elements) for key in entry.keys)
    whole = whole and all(BUFFER + name in held for name in entry.buffers)
    if not whole or header.metadata.get("extents") != said:
        raise CheckpointError(f"{where} is damaged: it does not hold what the manifest says; use another checkpoint")
