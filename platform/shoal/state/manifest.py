"""The manifest: the one small file that makes a folder of shard files a checkpoint. Imports neither torch nor Ray."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shoal.errors import CheckpointError
from shoal.state.layout import Extent

FORMAT = "shoal-checkpoint"
VERSION = 1


class Parameter(NamedTuple):
    """A parameter as the model knows it."""

    name: str
    numel: int
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One shard file: what it must look like, and which part of the state it holds."""

    name: str
    bytes: int
    sha256: str
    keys: tuple[str, ...]
    extents: tuple[Extent, ...]
    """In the order in which the file's tensors hold them. Every key covers the same extents."""
    buffers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: how it travels from a member to the coordinator."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "keys": list(self.keys),
            "extents": [[e.name, e.start, e.count] for e in self.extents],
            "buffers": list(self.buffers),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> FileEntry:
        """Inverse of `to_dict`; CheckpointError if something is missing or of another type."""
        name = _take(value, "name", str)
        if "/" in name or name.startswith("."):
            raise CheckpointError(f"the file name {name!r} in a manifest leads out of its folder")
        return cls(
            name=name,
            bytes=_take(value, "bytes", int),
            sha256=_take(value, "sha256", str),
            keys=tuple(_take(value, "keys", list)),
            extents=tuple(Extent(*row) for row in _rows(value, "extents", (str, int, int))),
            buffers=tuple(_take(value, "buffers", list)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A checkpoint: the whole state after `step` steps, in files that need not know how many members will read them."""

    step: int
    job_name: str
    job_digest: str
    model_digest: str
    parameters: tuple[Parameter, ...]
    files: tuple[FileEntry, ...]
    scalars: dict[str, Any] = field(default_factory=dict)
    """Equal on all members, for example `{"optimizer_step": 120}`."""
    cursor: dict[str, Any] = field(default_factory=dict)
    """From here the data order is continued."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What was known when it was published; the retention policy compares these."""
    engine: str = ""
    """Which engine wrote it. For people only: any engine reads it."""
    world_size: int = 0
    """How many members wrote it. For people only: any number reads it."""
    time: float = 0.0
    """When it was published, in unix seconds."""

    @property
    def keys(self) -> tuple[str, ...]:
        """`param` and the optimizer's vectors that the files hold."""
        return next((f.keys for f in self.files if f.extents), self.files[0].keys if self.files else ())

    @property
    def total_bytes(self) -> int:
        return sum(f.bytes for f in self.files)

    def check_complete(self) -> None:
        """Raise CheckpointError unless the files hold every element of every parameter exactly once, for every key."""
        for entry in self.files:
            if entry.extents and entry.keys != self.keys:
                raise CheckpointError(
                    f"checkpoint of step {self.step}: {entry.name} holds {', '.join(entry.keys)}, but other files hold "
                    f"{', '.join(self.keys)}; all members must write the same keys"
                )
        pieces: dict[str, list[tuple[int, int]]] = {p.name: [] for p in self.parameters}
        for extent in (e for f in self.files for e in f.extents):
            if extent.name not in pieces:
                raise CheckpointError(f"checkpoint of step {self.step}: {extent.name} is no parameter of the model")
            pieces[extent.name].append((extent.start, extent.stop))
        for name, numel, _ in self.parameters:
            _check_tiled(self.step, name, numel, pieces[name])

    def to_json(self) -> str:
        """One JSON object; its `digest` covers everything else in it."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "step": self.step,
            "time": self.time,
            "job": {"name": self.job_name, "digest": self.job_digest},
            "written_by": {"engine": self.engine, "world_size": self.world_size},
            "scalars": self.scalars,
            "cursor": self.cursor,
            "metrics": {k: v if math.isfinite(v) else None for k, v in self.metrics.items()},
            "model": {
                "digest": self.model_digest,
                "parameters": [[p.name, p.numel, list(p.shape)] for p in self.parameters],
            },
            "files": [f.to_dict() for f in self.files],
        }
        return json.dumps({**body, "digest": _digest(body)}) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "manifest.json") -> Manifest:
        """Inverse of `to_json`. CheckpointError says what is wrong with the file at `where`."""
        try:
            body = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{where} is not valid JSON ({error}): it is torn or damaged; use another") from None
        try:
            return cls._from_body(body)
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from None

    @classmethod
    def _from_body(cls, body: Any) -> Manifest:
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise CheckpointError("this is not the manifest of a Shoal checkpoint; look at the path")
        if body.get("version") != VERSION:
            raise CheckpointError(
                f"format version {body.get('version')!r} is not known here, this Shoal reads version {VERSION}; "
                f"use the version of Shoal that wrote the checkpoint, or a newer one"
            )
        digest = _take(body, "digest", str)
        if digest != _digest({k: v for k, v in body.items() if k != "digest"}):
            raise CheckpointError("its content does not match its own digest: it was damaged or edited; use another")
        job, model, writer = (_take(body, k, dict) for k in ("job", "model", "written_by"))
        return cls(
            step=_take(body, "step", int),
            time=float(_take(body, "time", (int, float))),
            job_name=_take(job, "name", str),
            job_digest=_take(job, "digest", str),
            model_digest=_take(model, "digest", str),
            parameters=parameter_table(_rows(model, "parameters", (str, int, list))),
            engine=_take(writer, "engine", str),
            world_size=_take(writer, "world_size", int),
            scalars=_take(body, "scalars", dict),
            cursor=_take(body, "cursor", dict),
            metrics={k: math.nan if v is None else float(v) for k, v in _take(body, "metrics", dict).items()},
            files=tuple(FileEntry.from_dict(f) for f in _take(body, "files", list)),
        )


def parameter_table(rows: Iterable[Sequence[Any]]) -> tuple[Parameter, ...]:
    """Rows of (name, elements, shape), as tuples or lists, as a table."""
    return tuple(Parameter(name, int(numel), tuple(int(n) for n in shape)) for name, numel, shape in rows)


def _check_tiled(step: int, name: str, numel: int, pieces: list[tuple[int, int]]) -> None:
    at = 0
    for start, stop in sorted(pieces):
        if start != at:
            fault = f"elements {at}..{start - 1} are in no file" if start > at else f"element {start} is in two files"
            raise CheckpointError(f"checkpoint of step {step} is not whole: parameter {name}, {fault}")
        at = stop
    if at != numel:
        fault = f"elements {at}..{numel - 1} are in no file" if at < numel else f"it has only {numel} elements"
        raise CheckpointError(f"checkpoint of step {step} is not whole: parameter {name}, {fault}")


def _digest(body: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(body))  # tuples and whole-number keys become what a reader will see
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _take(value: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise CheckpointError(f"the field {name!r} is missing; the manifest is damaged, use another checkpoint")
    if not isinstance(value[name], kind) or isinstance(value[name], bool):
        raise CheckpointError(f"the field {name}={value[name]!r} is of the wrong type; use another checkpoint")
    return value[name]


def _rows(value: dict[str, Any], name: str, kinds: tuple[type, ...]) -> list[list[Any]]:
    rows = _take(value, name, list)
    for row in rows:
        if not isinstance(row, list) or len(row) != len(kinds) or not all(map(isinstance, row, kinds)):
            raise CheckpointError(f"the row {row!r} of {name!r} is malformed; use another checkpoint")
    return rows
