"""The safetensors format, written as a stream and read in parts.

The safetensors library writes from one buffer to a local path; here tensors go to any stream piece by piece, without a
second copy in memory, and are hashed on their way. The format: 8 bytes, the length of the header (little-endian); the
header, JSON, name -> {dtype, shape, data_offsets}; the tensors' bytes without gaps.
Source: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import pyarrow as pa
import torch

from shoal.errors import CheckpointError

CHUNK = 8 << 20
"""Bytes that are written or read at once."""

DTYPES: dict[str, torch.dtype] = {
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "F32": torch.float32,
    "I32": torch.int32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100 << 20


class ByteStream(Protocol):
    """What is written to: a file, a pyarrow stream."""

    def write(self, data: Any, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in its file: bytes [start, stop) from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about itself."""

    metadata: dict[str, str]
    tensors: dict[str, Place]


def write_tensors(
    stream: ByteStream, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> tuple[int, str]:
    """Write a safetensors file; returns its bytes and its SHA-256. CheckpointError for a type the format lacks."""
    # Widest types first, so that each tensor begins at a multiple of its own width and can be mapped.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise CheckpointError(
                f"{name} is of type {tensor.dtype}, which safetensors cannot hold; "
                f"register it with persistent=False, or keep it as one of {', '.join(map(str, _NAMES))}"
            )
        stop = at + tensor.numel() * tensor.element_size()
        head[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    total = _put(stream, digest, memoryview(len(text).to_bytes(8, "little") + text))
    for name in order:
        total += _put(stream, digest, tensor_bytes(tensors[name].detach().cpu().contiguous()))
    return total, digest.hexdigest()


def read_header(file: pa.NativeFile, where: str) -> Header:
    """The header of the safetensors file that is open as `file`; CheckpointError names `where` if it is damaged."""
    size = file.size()
    length = int.from_bytes(file.read_at(8, 0), "little")
    if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise CheckpointError(f"{where} is damaged: its header claims {length} of {size} bytes; use another checkpoint")
    try:
        head = json.loads(file.read_at(length, 8))
        metadata = head.pop("__metadata__", {})
        tensors = {name: _place(value, 8 + length) for name, value in head.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged: its header cannot be read ({error}); use another one") from None
    for name, place in tensors.items():
        if place.stop - place.start != prod(place.shape) * place.dtype.itemsize or place.stop > size:
            raise CheckpointError(f"{where} is damaged: {name} does not fit into its {size} bytes; use another one")
    return Header(metadata, tensors)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous host tensor, not copied; writable."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _place(value: dict[str, Any], begin: int) -> Place:
    start, stop = value["data_offsets"]
    return Place(DTYPES[value["dtype"]], tuple(value["shape"]), begin + start, begin + stop)


def _put(stream: ByteStream, digest: Any, view: memoryview) -> int:
    for at in range(0, len(view), CHUNK):
        piece = view[at : at + CHUNK]
        digest.update(piece)
        stream.write(piece)
    return len(view)
