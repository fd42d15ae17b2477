"""From what a job says about its data to catalogs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.data import corpora, transforming
from shoal.data.catalog import MANIFEST, Catalog, read_catalog
from shoal.data.training import TrainingData
from shoal.data.trying import transformed
from shoal.data.verifying import leave_out, verify
from shoal.errors import ConfigError, DataError
from shoal.job.checks import nearest
from shoal.job.spec import Data

BUILTIN = "builtin:"
_NAMES = ("builtin:stdlib", "builtin:digits")


@dataclass(frozen=True, slots=True)
class Sources:
    """The data of one run."""

    train: TrainingData
    validation: Catalog | None


def resolve(data: Data, root: Path, columns: Sequence[str] = ()) -> Sources:
    """The catalogs that `data` names. Built-in corpora are written under `root` on first use.

    `columns` are those of the task; none: all that hold numbers. A local folder made by `shoal data prepare` brings its
    own held-out part. The job's transforms are tried on the first rows of each. Raises ConfigError or DataError, each
    with the reason and what to do; TaskError if a transform fails.
    """
    parts = _parts(data)
    places = [_places(part, root) for part in parts]
    # Of a mixture the first source that brings a held-out part is evaluated on, unless the job names one.
    validation = next((held_out for _, held_out in places if held_out is not None), None)
    train = TrainingData(
        names=tuple(s.name for s in data.sources) or ("",),
        catalogs=tuple(_catalog(data, place, columns, transforming.TRAIN) for place, _ in places),
    )
    train.check()
    held_out = None if validation is None else _catalog(data, validation, columns, transforming.VALIDATION)
    sources = Sources(train, held_out)
    if data.block is not None and not all(part.train.startswith(BUILTIN) for part in parts):
        block = sources.train.metadata.get("block")
        if block != data.block:
            has = f"its blocks have {block} tokens" if block else "it does not consist of packed blocks"
            raise ConfigError(
                f"data.block={data.block} is only for built-in text, and {train.uri} is what it is: {has}; leave "
                f"data.block out, or pack the text again with `shoal data prepare --block {data.block}`"
            )
    _same_columns(sources)
    return sources


def leave_out_bad(data: Data, root: Path, columns: Sequence[str] = ()) -> None:
    """Read all training data that `data` names, and put what cannot be read on the lists of what is left out.

    What no list can mend is left for `resolve` to say. Raises DataError if a list cannot be written.
    """
    for part in _parts(data):
        place, _ = _places(part, root)
        found = verify(place, data.columns or columns, raw=bool(data.transforms))
        if any(p.skippable for p in found.problems):
            leave_out(found)


def _parts(data: Data) -> list[Data]:
    """Of a mixture each source as if it stood alone."""
    return [replace(data, train=s.train, sources=()) for s in data.sources] or [data]


def _catalog(data: Data, place: str, needed: Sequence[str], purpose: int) -> Catalog:
    """The samples at `place`, with the columns `needed` by the task; through the job's transforms, if there are any."""
    if not data.transforms:
        return read_catalog(place, needed)
    return transformed(read_catalog(place, data.columns or needed, raw=True), data.transforms, needed, purpose)


def _places(data: Data, root: Path) -> tuple[str, str | None]:
    if data.train.startswith(BUILTIN):
        folder = _builtin(data, root)
        return str(folder / "train"), data.validation or str(folder / "validation")
    folder = Path(data.train).expanduser()
    if "://" not in data.train and (folder / MANIFEST).is_file() and (folder / "train").is_dir():
        held_out = folder / "validation"
        return str(folder / "train"), data.validation or (str(held_out) if _has_samples(folder) else None)
    return data.train, data.validation


def _builtin(data: Data, root: Path) -> Path:
    if data.train == "builtin:stdlib":
        return corpora.stdlib(root.absolute(), data.block)
    if data.train == "builtin:digits":
        if data.block is not None:
            raise ConfigError(
                f"data.block={data.block} makes no sense for builtin:digits, which are images; leave it out"
            )
        return corpora.digits(root.absolute())
    raise ConfigError(
        f"data.train={data.train!r} is no built-in corpus; there are {' and '.join(_NAMES)}"
        f"{nearest(data.train, _NAMES)}"
    )


def _has_samples(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / MANIFEST).read_text())["splits"]["validation"]["samples"])
    except (ValueError, KeyError, TypeError):
        return False  # another tool's manifest


def _same_columns(sources: Sources) -> None:
    if sources.validation is None:
        return
    train, held_out = ({c.name: c for c in catalog.columns} for catalog in (sources.train, sources.validation))
    for name, column in train.items():
        other = held_out.get(name)
        if other != column:
            has = f"{other.dtype} {list(other.shape)}" if other else "missing"
            raise DataError(
                f"column {name!r} is {column.dtype} {list(column.shape)} in {sources.train.uri}, but {has} in "
                f"{sources.validation.uri}; prepare both in the same way"
            )
