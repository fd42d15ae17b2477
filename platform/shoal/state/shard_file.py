"""One member's part of the state as one safetensors file.

Tensors: `state/<key>` (1-D fp32: the extents' elements one after another) for `param` and each of the optimizer's
vectors; rank 0 adds `buffer/<name>`. Metadata: the extents, as JSON rows of [parameter, start, count], and the step.
"""

from __future__ import annotations

import json
import secrets

import torch

from shoal.state.layout import Shard
from shoal.state.manifest import FileEntry
from shoal.state.safetensors_file import write_tensors
from shoal.state.storage import Storage

STATE = "state/"
BUFFER = "buffer/"


def write_shard(folder: Storage, shard: Shard, *, step: int, rank: int, size: int) -> FileEntry:
    """Write `shard` durably into the checkpoint's folder; returns its entry for the manifest.

    Nothing of it is seen before it is whole, and it collides with no other attempt at the same step. Raises
    CheckpointError (full disk, no permission, ...); then nothing is left behind.
    """
    for key, tensor in shard.tensors.items():
        assert tensor.dtype == torch.float32, f"{key} is {tensor.dtype}: state is kept in fp32"
        assert tensor.shape == (shard.elements(),), f"{key} has shape {tuple(tensor.shape)}, not ({shard.elements()},)"
    buffers = shard.buffers if rank == 0 else {}
    extents = [[e.name, e.start, e.count] for e in shard.extents]
    name = f"shard-{rank:05d}-of-{size:05d}-{secrets.token_hex(4)}.safetensors"
    with folder.writing(name) as stream:
        written, digest = write_tensors(
            stream,
            {STATE + k: t for k, t in shard.tensors.items()} | {BUFFER + k: t for k, t in buffers.items()},
            {"format": "shoal-shard-1", "step": str(step), "extents": json.dumps(extents)},
        )
    return FileEntry(
        name=name,
        bytes=written,
        sha256=digest,
        keys=tuple(shard.tensors),
        extents=shard.extents,
        buffers=tuple(buffers),
    )
