"""One number for a whole training state: the same however it is divided, whichever engine made it, wherever it lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from shoal.state.exchange_plan import plan_moves
from shoal.state.layout import Extent, Shard
from shoal.state.safetensors_file import tensor_bytes

if TYPE_CHECKING:
    from shoal.state.reader import CheckpointReader

CHUNK = 1 << 21
"""Elements that are read at a time: 8 MB."""


def state_digest(reader: CheckpointReader) -> str:
    """SHA-256 (64 hex digits) of a checkpoint's parameters, optimizer state, buffers and scalars, bit by bit.

    Neither the number of members that wrote it nor their engine matters, nor do its metrics, time and cursor. Reads the
    checkpoint once, 8 MB at a time; CheckpointError if it is damaged.
    """
    manifest = reader.manifest
    table = sorted((p.name, p.numel) for p in manifest.parameters)

    def elements() -> Iterator[torch.Tensor]:
        for key in sorted(manifest.keys):
            for extents in _chunks(table):
                yield reader.read(key, extents)

    return _digest(manifest.keys, table, manifest.scalars, reader.buffers(), elements())


def shards_digest(shards: Sequence[Shard], parameters: Iterable[Sequence[Any]]) -> str:
    """The same number from the shards of all members of a view. `parameters` are rows that begin with (name, elements).

    Raises CheckpointError if the shards do not hold everything.
    """
    table = sorted((str(row[0]), int(row[1])) for row in parameters)
    moves = plan_moves([[shard.extents for shard in shards]], [[Extent(name, 0, n) for name, n in table]])
    keys = tuple(shards[0].tensors)

    def elements() -> Iterator[torch.Tensor]:
        for key in sorted(keys):
            for move in moves:
                yield shards[move.shard].tensors[key][move.source : move.source + move.size]

    return _digest(keys, table, shards[0].scalars, shards[0].buffers, elements())


def _digest(
    keys: Iterable[str],
    table: Sequence[tuple[str, int]],
    scalars: Mapping[str, Any],
    buffers: Mapping[str, torch.Tensor],
    elements: Iterable[torch.Tensor],
) -> str:
    """Canonical order: names, sizes and scalars as JSON; each key's elements, parameters by name; buffers by name."""
    named = sorted(buffers.items())
    head = {
        "keys": sorted(keys),
        "parameters": table,
        "scalars": scalars,
        "buffers": [[name, str(b.dtype), list(b.shape)] for name, b in named],
    }
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for part in elements:
        digest.update(tensor_bytes(part))
    for _, buffer in named:
        digest.update(tensor_bytes(buffer.contiguous()))
    return digest.hexdigest()


def _chunks(table: Sequence[tuple[str, int]]) -> Iterator[list[Extent]]:
    """All elements in order, at most CHUNK at a time."""
    chunk: list[Extent] = []
    room = CHUNK
    for name, n in table:
        at = 0
        while at < n:
            count = min(room, n - at)
            chunk.append(Extent(name, at, count))
            at, room = at + count, room - count
            if room == 0:
                yield chunk
                chunk, room = [], CHUNK
    if chunk:
        yield chunk
