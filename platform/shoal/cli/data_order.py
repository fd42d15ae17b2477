"""`shoal data order`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
    from shoal.positions import Positions
    from shoal.run_folder import RunFolder


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

    wanted, train, positions = _of(job, overrides, runs_dir.absolute())
    if step > positions.steps:
        raise ConfigError(
            f"--step {step} is beyond the budget of {positions.steps} steps; choose one of 1 to {positions.steps}"
        )
    found = locate_step(wanted, train, step, positions)
    chosen = _selection(wanted, positions, step, found)
    said = _as_json(wanted, train, step, found) | {"selection": chosen}
    for line in [json.dumps(said)] if as_json else _lines(wanted, train, step, found, chosen):
        click.echo(line)


def _of(name: str, overrides: Sequence[str], root: Path) -> tuple[Job, TrainingData, Positions]:
    """The job, its training data, and what its steps read. Raises DataError if a run's data is not what it was."""
    from shoal.data.sources import resolve
    from shoal.job.growth import grows_on_the_way
    from shoal.job.steps import OPEN, positions_of, total_steps
    from shoal.tracking.ledger import of_kind

    job, folder = find_job(name, overrides, root)
    train = resolve(job.data, folder.root if folder is not None else root, tuple(job.task.columns)).train
    if folder is None:
        return job, train, _by_job(job, total_steps(job, train.samples))
    began = next(iter(reversed(list(of_kind(folder.ledger, "start")))), None)
    if overrides or began is None:  # another job than the run's, or a run that has not begun
        return job, train, _by_job(job, total_steps(job, train.samples))
    if (began["data_digest"], began["samples"]) != (train.digest, train.samples):
        raise DataError(
            f"{train.uri} is not what run {folder.run_id} is trained on: it has {train.samples} samples (digest "
            f"{train.digest[:12]}), then it had {began['samples']} (digest {began['data_digest'][:12]}); bring the old "
            f"data back"
        )
    if grows_on_the_way(job):
        return job, train, _as_decided(folder)
    return job, train, positions_of(job, int(began["total_steps"] or OPEN))


def _by_job(job: Job, steps: int) -> Positions:
    from shoal.job.growth import ByNoise, grows_on_the_way
    from shoal.job.steps import positions_of

    positions = positions_of(job, steps)
    if not grows_on_the_way(job):
        return positions
    if isinstance(job.batch.growth, ByNoise):  # the first two blocks are as the job says
        return replace(positions, steps=min(steps, 2 * job.batch.growth.every))
    raise ConfigError(
        f"how far a budget of {job.budget.spent} has come at a step, and with it batch.growth, only a run can tell; "
        f"name a run in the place of the recipe"
    )


def _as_decided(folder: RunFolder) -> Positions:
    """What the committed steps of a run read, whose batch grew on the way."""
    from shoal.audit.chain import Chain
    from shoal.tracking.ledger import scan

    chain = Chain().add(entry for entry, _ in scan(folder.ledger))
    if chain.positions is None or chain.last < 1:
        raise ConfigError(f"run {folder.run_id} has committed no step yet; how large its batches are is not known")
    return replace(chain.positions, steps=chain.last)


def _shards(job: Job, found: list[Located]) -> Iterator[tuple[int, list[Located]]]:
    size = len(found) // job.batch.virtual_shards
    for shard in range(job.batch.virtual_shards):
        yield shard, found[shard * size : (shard + 1) * size]


def _selection(job: Job, positions: Positions, step: int, found: list[Located]) -> dict[str, Any] | None:
    """How the step selects among its samples, by virtual shard; None: it trains on all."""
    from shoal.job.steps import batches_of

    spec, candidates = job.data.selection, len(found) // job.batch.virtual_shards
    if spec is None:
        return None
    places = batches_of(job, positions.steps).per_step(step) // job.batch.virtual_shards
    return {"rule": spec.rule, "trained_on": places, "of": candidates} if candidates != places else None


def _folders(train: TrainingData) -> dict[str, str]:
    """The folder of each source, by its name."""
    from shoal.data.locating import common_folder

    return {name: common_folder(catalog) for name, catalog in zip(train.names, train.catalogs, strict=True)}


def _lines(
    job: Job, train: TrainingData, step: int, found: list[Located], chosen: dict[str, Any] | None
) -> Iterator[str]:
    first, last = found[0].position, found[-1].position
    groups = {(at.place.file, at.place.row_group) for at in found}
    yield f"step {step}: positions {first} to {last} of the endless stream, from {len(groups)} of the row groups"
    folders = _folders(train)
    if chosen:
        yield (
            f"selection by {chosen['rule']}: these are the candidates; {chosen['trained_on']} of each shard's "
            f"{chosen['of']} are trained on, which ones the losses decide"
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
