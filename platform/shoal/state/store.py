"""The checkpoints of a run: publish, list, keep by a policy, delete. Imports neither torch nor Ray.

    <base>/step-00000100/shard-00000-of-00002-5f3a91c0.safetensors
                         shard-00001-of-00002-77d2e04b.safetensors
                         manifest.json                               published last

A folder without a valid manifest is not a checkpoint. Shard files carry a random word in their names, so that two
attempts at one step never write to the same file and a published checkpoint is never written to again.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.errors import CheckpointError
from shoal.job import Checkpoints
from shoal.state.manifest import Manifest
from shoal.state.storage import Storage

if TYPE_CHECKING:
    import pyarrow.fs as pafs

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A published checkpoint, in short."""

    step: int
    uri: str
    metrics: dict[str, float]
    time: float
    """When it was published, in unix seconds."""


def step_folder(step: int) -> str:
    """Name of the folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def read_manifest(uri: str, filesystem: pafs.FileSystem | None = None) -> Manifest:
    """The manifest of the checkpoint at `uri`; CheckpointError if there is none, or none that is whole."""
    return _read(Storage(uri, filesystem))


def retain(infos: Sequence[CheckpointInfo], policy: Checkpoints) -> list[int]:
    """Steps to delete, oldest first.

    Kept are the newest one, the last `keep_last`, the `best_count` best by `keep_best` (of equals the newest; one whose
    metric is unknown or not a number is never the best) and those whose step is a multiple of `keep_every`.
    """
    if policy.keep_last is None or not infos:
        return []
    steps = sorted(info.step for info in infos)
    kept = set(steps[-policy.keep_last :])
    if policy.keep_every is not None:
        kept.update(step for step in steps if step % policy.keep_every == 0)
    if policy.keep_best is not None:
        metric, sign = policy.keep_best.removeprefix("-"), -1 if policy.keep_best.startswith("-") else 1
        known = [info for info in infos if not math.isnan(info.metrics.get(metric, math.nan))]
        best_first = sorted(known, key=lambda info: (sign * info.metrics[metric], -info.step))
        kept.update(info.step for info in best_first[: policy.best_count])
    return [step for step in steps if step not in kept]


class CheckpointStore:
    """The checkpoints below one folder: a path or a URI, or a path inside `filesystem` where one is given."""

    def __init__(self, base_uri: str | os.PathLike[str], filesystem: pafs.FileSystem | None = None) -> None:
        self._storage = Storage(base_uri, filesystem)
        self._filesystem = filesystem
        self._known: dict[int, tuple[object, Manifest]] = {}

    @property
    def uri(self) -> str:
        return self._storage.uri

    def publish(self, manifest: Manifest) -> str:
        """Make the members' files a checkpoint; returns its URI.

        CheckpointError if the files do not hold the whole state, are missing or of the wrong size, or if the manifest
        cannot be written. Then nothing is published, and older checkpoints are as they were.
        """
        manifest.check_complete()
        folder = self._storage.child(step_folder(manifest.step))
        for entry, size in zip(manifest.files, folder.sizes([f.name for f in manifest.files]), strict=True):
            if size != entry.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {entry.bytes}"
                raise CheckpointError(
                    f"checkpoint of step {manifest.step} is not published: {folder.uri_of(entry.name)} {found}. "
                    f"All workers and the coordinator must see the same storage: set checkpoints.path to a shared one"
                )
        with folder.writing(MANIFEST) as stream:
            stream.write(manifest.to_json().encode())
        return folder.uri

    def list(self) -> tuple[CheckpointInfo, ...]:
        """All published checkpoints, newest last. Torn ones are not among them."""
        return tuple(
            CheckpointInfo(step, self._storage.uri_of(step_folder(step)), manifest.metrics, manifest.time)
            for step, (manifest, _) in sorted(self._scan().items())
            if manifest is not None
        )

    def latest(self) -> CheckpointInfo | None:
        """The published checkpoint with the most steps, if there is one."""
        infos = self.list()
        return infos[-1] if infos else None

    def open(self, uri: str) -> Manifest:
        """The manifest of the checkpoint at `uri`; CheckpointError if there is none, or none that is whole."""
        return read_manifest(uri, self._filesystem)

    def delete(self, step: int) -> None:
        """Delete the checkpoint of `step`, if there is one; its manifest first, so that it is never seen in part."""
        self._storage.child(step_folder(step)).delete_file(MANIFEST)
        self._storage.delete_folder(step_folder(step))
        self._known.pop(step, None)

    def prune(self, policy: Checkpoints) -> tuple[int, ...]:
        """Delete what `policy` does not keep, and the leftovers; returns the deleted checkpoints' steps."""
        steps = tuple(retain(self.list(), policy))
        for step in steps:
            self.delete(step)
        self.remove_leftovers()
        return steps

    def remove_leftovers(self) -> tuple[str, ...]:
        """Delete what unfinished writes left behind; returns the names, relative to the base folder.

        Only what is older than the newest checkpoint: anything newer may be in the making. A folder whose manifest is
        there but cannot be read (damaged, or of a later version of Shoal) is left for people to look at.
        """
        found = self._scan()
        newest = max((step for step, (manifest, _) in found.items() if manifest is not None), default=-1)
        removed = []
        for step, (manifest, names) in sorted(found.items()):
            folder = step_folder(step)
            if step >= newest:
                continue
            if MANIFEST not in names:
                self._storage.delete_folder(folder)
                removed.append(folder)
                continue
            if manifest is None:
                continue
            for name in sorted(names - {MANIFEST} - {f.name for f in manifest.files}):
                self._storage.child(folder).delete_file(name)
                removed.append(f"{folder}/{name}")
        return tuple(removed)

    def _scan(self) -> dict[int, tuple[Manifest | None, set[str]]]:
        """step -> (manifest if it is a checkpoint, names of the files in its folder); one listing in all."""
        files: dict[int, set[str]] = {}
        stamps: dict[int, object] = {}
        below = len(self._storage.root.rstrip("/")) + 1
        for info in self._storage.entries():
            folder, _, name = info.path[below:].partition("/")
            match = _STEP_FOLDER.fullmatch(folder)
            if match is None:
                continue
            names = files.setdefault(int(match[1]), set())
            if name:
                names.add(name)
            if name == MANIFEST:
                stamps[int(match[1])] = (info.size, info.mtime_ns)
        return {step: (self._load(step, stamps.get(step)), names) for step, names in files.items()}

    def _load(self, step: int, stamp: object) -> Manifest | None:
        if stamp is None:
            return None
        if step in self._known and self._known[step][0] == stamp:
            return self._known[step][1]
        try:
            manifest = _read(self._storage.child(step_folder(step)))
        except CheckpointError as error:
            _log.warning("not a checkpoint: %s", error)
            return None
        self._known[step] = (stamp, manifest)
        return manifest


def _read(folder: Storage) -> Manifest:
    content = folder.read(MANIFEST)
    if content is None:
        raise CheckpointError(
            f"no checkpoint at {folder.uri}: there is no {MANIFEST}, so it was never finished, or it was deleted; "
            f"look at the path, or use another checkpoint"
        )
    return Manifest.from_json(content, folder.uri_of(MANIFEST))
