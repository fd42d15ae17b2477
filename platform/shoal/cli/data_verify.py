"""`shoal data verify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.data_inspect import columns_option, named
from shoal.cli.options import runs_option
from shoal.errors import DataError

if TYPE_CHECKING:
    from shoal.data.skipping import Skipped
    from shoal.data.verifying import Verified


@click.command(short_help="Read every row group and name what is wrong.")
@click.argument("uri")
@columns_option
@click.option(
    "--write-skip",
    is_flag=True,
    help="Write the list _skip.json beside the files: runs that start from now on leave the bad row groups out.",
)
@click.option("--threads", type=click.IntRange(1, 256), default=8, show_default=True, help="Row groups read at once.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each split.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@runs_option
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    uri: str,
    columns: str,
    write_skip: bool,
    threads: int,
    as_json: bool,
    quiet: bool,
    runs_dir: Path,
) -> None:
    """Read every row group of the Parquet at URI (see `shoal data inspect`) and check what training relies on: that
    pages decode, no missing values, equal lengths and types, statistics as the footers say, and the digest of prepared
    data.

    Exit code 0: a run can use all of it. 2: not; every problem is named with its file and row group. With --write-skip
    0 if what is left is good: a list, _skip.json, then leaves the bad row groups out of every run that starts from now
    on. It counts into the digest, so a run that began without it does not go on with other samples.

    \b
    shoal data verify corpus
    shoal data verify s3://bucket/images --columns image,label --threads 32
    shoal data verify corpus --write-skip
    shoal data verify corpus --json | jq .problems
    """
    from shoal.data.inspecting import splits
    from shoal.data.verifying import leave_out
    from shoal.data.verifying import verify as look

    good = True
    for name, place in splits(uri, runs_dir.absolute()).items():
        progress = _Shown(name or "reading", quiet=quiet or as_json)
        found = look(place, named(columns), threads=threads, progress=progress)
        progress.clear()
        new = leave_out(found) if write_skip else []
        digest = _digest(place, found) if write_skip else found.digest
        good = good and digest is not None
        for line in [json.dumps(_as_json(name, found, new, digest))] if as_json else _lines(found, new, digest):
            click.echo(line)
    ctx.exit(0 if good else DataError.exit_code)


class _Shown:
    """Progress of the reading."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        from shoal.cli.progress import ProgressLine

        self._what, self._line = what, None if quiet else ProgressLine()

    def __call__(self, done: int, total: int, nbytes: int) -> None:
        from shoal.cli import text

        if self._line is not None:
            self._line.say(f"{self._what}: {done} of {total} row groups, {text.size(nbytes)}", last=done == total)

    def clear(self) -> None:
        """Take the line away."""
        if self._line is not None:
            self._line.clear()


def _digest(uri: str, found: Verified) -> str | None:
    """What a run would record now that there is a new list; None if it could not use what is left."""
    from shoal.data.catalog import read_catalog

    if not all(p.skippable for p in found.problems):
        return None
    return read_catalog(uri, found.columns).digest


def _lines(found: Verified, new: list[Skipped], digest: str | None) -> Iterator[str]:
    from shoal.cli import text

    count = len(found.problems)
    yield f"{found.uri}: {'good' if not count else f'{count} problem' + ('s' if count > 1 else '')}"
    for problem in found.problems:
        yield f"  {problem.place}: {problem.text}"
    for note in found.notes:
        yield f"  {note}"
    yield (
        f"  read        row groups {found.row_groups}, samples {found.samples}, {text.size(found.read_bytes)} in "
        f"{text.duration(found.seconds)}; columns {', '.join(found.columns)}"
    )
    if found.left_out:
        rows = sum(e.rows for e in found.left_out)
        yield f"  left out    {len(found.left_out)} before, {rows} samples, by the list _skip.json"
    if new:
        rows = sum(e.rows for e in new)
        yield f"  left out    {len(new)} more from now on, {rows} of {found.samples} samples: {found.folder}/_skip.json"
    elif count and all(p.skippable for p in found.problems):
        yield "  to go on    bring good copies, or leave out what is bad: shoal data verify --write-skip"
    if digest is not None:
        yield f"  digest      {digest}{' (of the content, computed again)' if found.recomputed and not new else ''}"


def _as_json(name: str, found: Verified, new: list[Skipped], digest: str | None) -> dict[str, Any]:
    return {
        "uri": found.uri,
        "split": name or None,
        "good": found.good,
        "problems": [asdict(p) for p in found.problems],
        "notes": list(found.notes),
        "left_out": [asdict(e) for e in found.left_out],
        "newly_left_out": [asdict(e) for e in new],
        "columns": list(found.columns),
        "files": len(found.files),
        "row_groups": found.row_groups,
        "samples": found.samples,
        "read_bytes": found.read_bytes,
        "digest": digest,
        "recomputed": found.recomputed,
        "seconds": round(found.seconds, 3),
    }
