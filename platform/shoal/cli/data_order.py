"""`shoal data order`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.jobs import find_job
from shoal.cli.options import runs_option, set_option
from shoal.errors import ConfigError, DataError

if TYPE_CHECKING:
    from shoal.data.locating import Located
    from shoal.data.training import TrainingData
    from shoal.job import Job


@click.command(short_help="Which samples a step uses.")
@click.argument("job")
@click.option("--step", type=click.IntRange(1), required=True, metavar="T", help="Steps count from 1.")
@set_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@runs_option
def order(*, job: str, step: int, overrides: tuple[str, ...], as_json: bool, runs_dir: Path) -> None:
    """Which samples step T of JOB uses: position in the endless stream, epoch, file, row group and row of each, by
    virtual shard. JOB is a recipe, or a run (its id or folder).

    The order is a function of the job and its data: nothing is trained, and no worker is asked. Where the job selects
    samples by their losses (data.selection), these are the candidates; which of them are trained on, only the weights
    of that step can tell.

    \b
    shoal data order jobs/digits.py --step 17
    shoal data order jobs/digits.py --step 17 --set batch.size=128 --set seed=1
    shoal data order gpt-20261120-083112-a1b2 --step 5000 --json | jq .shards[0]
    """
    from shoal.data.locating import locate_step

    wanted, train, steps = _of(job, overrides, runs_dir.absolute())
    if step > steps:
        raise ConfigError(f"--step {step} is beyond the budget of {steps} steps; choose one of 1 to {steps}")
    found = locate_step(wanted, train, step, steps)
    for line in [json.dumps(_as_json(wanted, train, step, found))] if as_json else _lines(wanted, train, step, found):
        click.echo(line)


def _of(name: str, overrides: Sequence[str], root: Path) -> tuple[Job, TrainingData, int]:
    """The job, its training data and its steps. Raises DataError if a run's data is not what it was."""
    from shoal.data.sources import resolve
    from shoal.job.steps import OPEN, total_steps
    from shoal.tracking.ledger import of_kind

    job, folder = find_job(name, overrides, root)
    train = resolve(job.data, folder.root if folder is not None else root, tuple(job.task.columns)).train
    if folder is None:
        return job, train, total_steps(job, train.samples)
    began = next(iter(reversed(list(of_kind(folder.ledger, "start")))), None)
    if overrides or began is None:  # another job than the run's, or a run that has not begun
        return job, train, total_steps(job, train.samples)
    if (began["data_digest"], began["samples"]) != (train.digest, train.samples):
        raise DataError(
            f"{train.uri} is not what run {folder.run_id} is trained on: it has {train.samples} samples (digest "
            f"{train.digest[:12]}), then it had {began['samples']} (digest {began['data_digest'][:12]}); bring the old "
            f"data back"
        )
    return job, train, int(began["total_steps"] or OPEN)


def _shards(job: Job, found: list[Located]) -> Iterator[tuple[int, list[Located]]]:
    size = len(found) // job.batch.virtual_shards
    for shard in range(job.batch.virtual_shards):
        yield shard, found[shard * size : (shard + 1) * size]


def _selection(job: Job, found: list[Located]) -> dict[str, Any] | None:
    """How the step selects among its samples, by virtual shard; None: it trains on all."""
    places, candidates = job.batch.shard_size, len(found) // job.batch.virtual_shards
    if job.data.selection is None or candidates == places:
        return None
    return {"rule": job.data.selection.rule, "trained_on": places, "of": candidates}


def _folders(train: TrainingData) -> dict[str, str]:
    """The folder of each source, by its name."""
    from shoal.data.locating import common_folder

    return {name: common_folder(catalog) for name, catalog in zip(train.names, train.catalogs, strict=True)}


def _lines(job: Job, train: TrainingData, step: int, found: list[Located]) -> Iterator[str]:
    first, last = found[0].position, found[-1].position
    groups = {(at.place.file, at.place.row_group) for at in found}
    yield f"step {step}: positions {first} to {last} of the endless stream, from {len(groups)} of the row groups"
    folders = _folders(train)
    if selection := _selection(job, found):
        yield (
            f"selection by {selection['rule']}: these are the candidates; {selection['trained_on']} of each shard's "
            f"{selection['of']} are trained on, which ones the losses decide"
        )
    yield from (f"{f'source {name}' if name else 'data'}: {folder}" for name, folder in folders.items())
    mixed = len(folders) > 1
    files = {at.place.file: at.place.file[len(folders[at.source]) :].lstrip("/") for at in found}
    width = max(map(len, files.values()))
    source = max(6, *map(len, folders)) + 2 if mixed else 0
    yield f"shard  position  {'source':<{source}}"[: 17 + source] + f"epoch  {'file':<{width}}  row group     row"
    for shard, part in _shards(job, found):
        for at in part:
            yield (
                f"{shard:>5}  {at.position:>8}  {at.source:<{source}}{at.epoch:>5}  {files[at.place.file]:<{width}}  "
                f"{at.place.row_group:>9}  {at.place.row:>6}"
            )


def _as_json(job: Job, train: TrainingData, step: int, found: list[Located]) -> dict[str, Any]:
    return {
        "step": step,
        "positions": [found[0].position, found[-1].position + 1],
        "seed": job.seed,
        "selection": _selection(job, found),
        "data": {"uri": train.uri, "digest": train.digest, "samples": train.samples},
        "shards": [
            {
                "shard": shard,
                "positions": [part[0].position, part[-1].position + 1],
                "samples": [
                    {
                        "position": at.position, "source": at.source or None, "epoch": at.epoch, "file": at.place.file,
                        "row_group": at.place.row_group, "row": at.place.row,
                    }
                    for at in part
                ],
            }
            for shard, part in _shards(job, found)
        ],
    }  # fmt: skip
