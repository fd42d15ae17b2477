"""`shoal data inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.options import runs_option

if TYPE_CHECKING:
    from shoal.data.inspecting import ColumnFacts, Inspection
    from shoal.data.showing import Decode


def columns_option(command: Any) -> Any:
    """`--columns A,B`."""
    return click.option(
        "--columns", default="", metavar="A,B", help="Those that the task reads. Default: all that hold numbers."
    )(command)


def named(columns: str) -> tuple[str, ...]:
    """`tokens, label` -> its names."""
    return tuple(name.strip() for name in columns.split(",") if name.strip())


@click.command(short_help="What a data set holds, and a few of its samples.")
@click.argument("uri")
@columns_option
@click.option(
    "--samples", type=click.IntRange(0, 1000), default=3, show_default=True, help="So many, spread over the data."
)
@click.option(
    "--tokenizer", metavar="FILE", help="To decode tokens with. Default: bytes, or the file that the manifest names."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each split.")
@runs_option
def inspect(*, uri: str, columns: str, samples: int, tokenizer: str | None, as_json: bool, runs_dir: Path) -> None:
    """Files, row groups, columns, digest and a few decoded samples of the Parquet at URI: a file, a folder, s3://,
    gs://, a folder made by `shoal data prepare`, or builtin:digits.

    Reads the footers, and the row groups of the samples that are shown: seconds, whatever the size.

    \b
    shoal data inspect corpus
    shoal data inspect s3://bucket/images --columns image,label --samples 10
    shoal data inspect builtin:digits --json | jq .digest
    """
    from shoal.data.inspecting import inspect as look
    from shoal.data.inspecting import splits
    from shoal.data.showing import find_decoder

    for name, place in splits(uri, runs_dir.absolute()).items():
        found = look(place, named(columns), samples=samples)
        decode = find_decoder(found.catalog.metadata, found.manifest, tokenizer)
        for line in [json.dumps(_as_json(name, found, decode))] if as_json else _lines(found, decode):
            click.echo(line)


def _lines(found: Inspection, decode: Decode | None) -> Iterator[str]:
    from shoal.cli import text

    catalog = found.catalog
    groups = [g.rows for g in catalog.groups]
    yield catalog.uri
    yield f"  files       {len(catalog.files)}, {text.size(sum(catalog.file_bytes))}"
    yield f"  row groups  {len(groups)}, of {min(groups)} to {max(groups)} rows"
    estimated = "about " if any(None in c.shape for c in catalog.columns) else ""
    yield (
        f"  samples     {catalog.samples} of {estimated}{catalog.sample_bytes} bytes in memory "
        f"({text.size(catalog.samples * catalog.sample_bytes)})"
    )
    width = max(len(c.name) for c in found.columns)
    for i, column in enumerate(found.columns):
        yield f"  {'columns' if not i else '':<10}  {column.name:<{width}}  {_typed(column)}"
    yield f"  digest      {catalog.digest}"
    if catalog.metadata:
        yield f"  about       {', '.join(f'{k} {v}' for k, v in catalog.metadata.items())}"
    said = _said(found)
    if said:
        yield f"  prepared    {', '.join(f'{k} {v}' for k, v in said.items())}"
    if catalog.skipped:
        rows = sum(e.rows for e in catalog.skipped)
        yield f"  left out    {len(catalog.skipped)} bad, {rows} samples, by the list _skip.json"
    for sample in found.samples:
        yield from _sample_lines(found, sample, decode)


def _sample_lines(found: Inspection, sample: Any, decode: Decode | None) -> Iterator[str]:
    from shoal.data.locating import common_folder
    from shoal.data.showing import lines

    place = sample.place
    file = place.file[len(common_folder(found.catalog)) :].lstrip("/")
    yield f"sample {sample.index}  ({file}, row group {place.row_group}, row {place.row})"
    width = max(map(len, sample.values))
    for name, value in sample.values.items():
        first, *more = lines(name, value, decode)
        yield f"  {name:<{width}}  {first}"
        yield from (f"  {'':<{width}}  {line}" for line in more)


def _typed(column: ColumnFacts) -> str:
    if column.dtype is None:
        return f"{column.arrow}: no numbers, training cannot read it"
    shape = f" [{', '.join('?' if n is None else str(n) for n in column.shape)}]" if column.shape else ""
    return f"{column.dtype}{shape}{'' if column.used else ': not read'}"


def _said(found: Inspection) -> dict[str, Any]:
    """What the manifest says of the split besides its digest and what the files show anyway."""
    split = (found.manifest or {}).get("split", {})
    return {k: v for k, v in split.items() if k not in ("digest", "files", "samples")}


def _as_json(name: str, found: Inspection, decode: Decode | None) -> dict[str, Any]:
    from dataclasses import asdict

    from shoal.data.showing import as_json

    catalog = found.catalog
    rows = [g.rows for g in catalog.groups]
    return {
        "uri": catalog.uri,
        "split": name or None,
        "files": len(catalog.files),
        "file_bytes": sum(catalog.file_bytes),
        "row_groups": {"count": len(rows), "smallest": min(rows), "largest": max(rows)},
        "samples": catalog.samples,
        "sample_bytes": catalog.sample_bytes,
        "columns": [asdict(c) for c in found.columns],
        "digest": catalog.digest,
        "about": catalog.metadata,
        "prepared": _said(found) or None,
        "left_out": [asdict(e) for e in catalog.skipped],
        "shown": [
            {"index": s.index, **asdict(s.place), "values": {n: as_json(n, v, decode) for n, v in s.values.items()}}
            for s in found.samples
        ],
    }
