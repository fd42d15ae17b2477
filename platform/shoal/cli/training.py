"""`shoal train` and `shoal resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.options import (
    detach_options,
    display_options,
    log_option,
    new_data_option,
    runs_option,
    set_option,
    told_as_json,
    where_options,
)
from shoal.errors import ConfigError

if TYPE_CHECKING:
    from shoal.job import Job
    from shoal.launch.api import RunOptions
    from shoal.logs import Style


@click.command(short_help="Train the job that a recipe defines.")
@click.argument("recipe")
@set_option
@click.option("--resume", metavar="RUN", help="Go on from the last checkpoint of this run (its id or folder).")
@new_data_option
@click.option("--name", metavar="NAME", help="Name of the run's folder. Default: job, date, time, four letters.")
@where_options
@log_option
@detach_options
@runs_option
@display_options
@click.pass_context
def train(
    ctx: click.Context,
    *,
    recipe: str,
    overrides: tuple[str, ...],
    resume: str | None,
    new_data: bool,
    name: str | None,
    address: str | None,
    tracking_uri: str | None,
    log_format: Style,
    detach: bool,
    if_detached: str,
    runs_dir: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train the job that RECIPE defines: a Python file with a variable or function named job (FILE.py:OTHER for another
    name).

    \b
    shoal train jobs/gpt.py
    shoal train jobs/gpt.py --set workers.max=4 --set optimizer.lr=3e-4
    shoal train jobs/gpt.py --set engine.name=zero --set engine.stage=3
    shoal train jobs/gpt.py --resume gpt-20261120-083112-a1b2 --set budget.steps=1000
    shoal train jobs/gpt.py --address auto --tracking-uri http://mlflow:5000
    shoal train jobs/gpt.py --address auto --detach
    shoal train jobs/digits.py --json | jq .loss
    ray job submit --working-dir . -- shoal train jobs/gpt.py

    Ctrl-C (or SIGTERM) stops after the present step with a checkpoint; a second one stops at once.
    """
    with told_as_json(as_json):
        from shoal.job.overrides import apply
        from shoal.job.recipe import load_recipe
        from shoal.launch.api import RunOptions

        loaded = load_recipe(recipe)
        options = RunOptions(
            runs_dir=runs_dir,
            name=name,
            address=address,
            tracking_uri=tracking_uri,
            log_format=log_format,
            if_detached="continue" if detach or if_detached == "continue" else "stop",
            resume=resume,
            new_data=new_data,
            recipe=loaded,
            overrides=overrides,
        )
        run = _submit if detach else _run
        ctx.exit(run(apply(loaded.job, overrides), options, as_json=as_json, quiet=quiet))


@click.command(short_help="Go on with a run from its last checkpoint.")
@click.argument("run")
@set_option
@new_data_option
@click.option("--name", metavar="NAME", help="Name of the new run's folder, if --set or --new-data makes it a new run.")
@where_options
@log_option
@detach_options
@runs_option
@display_options
@click.pass_context
def resume(
    ctx: click.Context,
    *,
    run: str,
    overrides: tuple[str, ...],
    new_data: bool,
    name: str | None,
    address: str | None,
    tracking_uri: str | None,
    log_format: Style,
    detach: bool,
    if_detached: str,
    runs_dir: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Go on with RUN (its id or folder) from its last checkpoint, with the job as it was.

    Any number of workers and any engine can go on from any checkpoint. Values that change the result make it a new run
    that starts from the old one's checkpoint.

    \b
    shoal runs                                           which runs there are
    shoal resume gpt-20261120-083112-a1b2
    shoal resume gpt-20261120-083112-a1b2 --set workers.max=8 --set engine.name=zero
    shoal resume gpt-20261120-083112-a1b2 --set budget.steps=1000
    """
    with told_as_json(as_json):
        from shoal.job.store import load_job
        from shoal.launch.api import RunOptions
        from shoal.launch.prepare import find_run

        options = RunOptions(
            runs_dir=runs_dir,
            name=name,
            address=address,
            tracking_uri=tracking_uri,
            log_format=log_format,
            if_detached="continue" if detach or if_detached == "continue" else "stop",
            resume=run,
            new_data=new_data,
            overrides=overrides,
        )
        job = load_job(find_run(runs_dir.absolute(), run), overrides)
        ctx.exit((_submit if detach else _run)(job, options, as_json=as_json, quiet=quiet))


def _run(job: Job, options: RunOptions, *, as_json: bool, quiet: bool) -> int:
    from shoal.launch.api import run_job

    with _display(as_json=as_json, quiet=quiet) as display:
        return run_job(job, options=options, display=display).exit_code


def _submit(job: Job, options: RunOptions, *, as_json: bool, quiet: bool) -> int:
    from shoal.launch.api import submit_job

    with _display(as_json=as_json, quiet=quiet) as display:
        run_id = submit_job(job, options=options, display=display)
    if not as_json:
        click.echo(
            f"{run_id} goes on by itself; follow it with: shoal attach {run_id}, end it with: shoal stop {run_id}"
        )
    return 0


def _display(*, as_json: bool, quiet: bool) -> Any:
    from shoal.cli.display import make_display

    if as_json and quiet:
        raise ConfigError("--json and --quiet exclude each other: --json prints nothing but JSON anyway")
    return make_display(as_json=as_json, quiet=quiet)
