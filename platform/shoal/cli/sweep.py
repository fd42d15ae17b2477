"""`shoal sweep`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.options import runs_option, told_as_json, where_options
from shoal.errors import ConfigError, Interrupted, TrainingFailed

if TYPE_CHECKING:
    from shoal.tuning.recipe import SweepRecipe
    from shoal.tuning.trials import SweepState


@click.command(short_help="Try many jobs made from one, and find the best.")
@click.argument("recipe")
@click.option(
    "-s",
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME=VALUE",
    help="Replace a value of the sweep, for example trials=40, or of its job: job.budget.steps=100. May be repeated.",
)
@click.option("--resume", metavar="NAME", help="Go on with this sweep, also with more trials or a wider space.")
@click.option("--name", metavar="NAME", help="Name of the sweep. Default: recipe, date, time, four letters.")
@click.option("--dry-run", is_flag=True, help="Check everything, list what would be tried, and start nothing.")
@where_options
@runs_option
@click.option("--json", "as_json", is_flag=True, help="The outcome as JSON on stdout, nothing else.")
@click.pass_context
def sweep(
    ctx: click.Context,
    *,
    recipe: str,
    overrides: tuple[str, ...],
    resume: str | None,
    name: str | None,
    dry_run: bool,
    address: str | None,
    tracking_uri: str | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Run the sweep that RECIPE defines: a Python file with a variable or function named sweep (FILE.py:OTHER for
    another name).

    \b
    shoal sweep tuning/lr_schedule.py --dry-run
    shoal sweep tuning/lr_schedule.py --set trials=10 --set job.budget.steps=100
    shoal sweep tuning/lr_schedule.py --resume lr_schedule-20261120-083112-a1b2 --set trials=40
    shoal train runs/sweeps/NAME/best.py

    Ctrl-C (or SIGTERM) ends the running trials with a checkpoint; a second one stops at once. Either way --resume goes
    on.
    """
    with told_as_json(as_json):
        from shoal.cli.sweep_table import SweepTable
        from shoal.tuning.recipe import load_sweep
        from shoal.tuning.run import SweepOptions, run_sweep

        if resume is not None and name is not None:
            raise ConfigError(f"--resume {resume} and --name {name} exclude each other: a sweep keeps its name")
        loaded = load_sweep(recipe, overrides)
        options = SweepOptions(runs_dir=runs_dir, name=name, resume=resume, address=address, tracking_uri=tracking_uri)
        if dry_run:
            _list(loaded, options, as_json=as_json)
            return
        with SweepTable(sys.stderr if as_json else sys.stdout) as display:
            state = run_sweep(loaded, options, display)
        if as_json:
            click.echo(json.dumps(_outcome(state)))
        codes = {"finished": 0, "stopped": Interrupted.exit_code}
        ctx.exit(codes.get(state.status, TrainingFailed.exit_code))


def _outcome(state: SweepState) -> dict[str, Any]:
    best = state.best
    return {
        "type": "sweep",
        "name": state.name,
        "status": state.status,
        "reason": state.reason,
        "folder": state.folder,
        "counts": state.counts,
        "best": None
        if best is None
        else {"trial": best.number, "run_id": best.run_id, "value": best.best, "fields": best.fields},
    }


def _list(recipe: SweepRecipe, options: Any, *, as_json: bool) -> None:
    from shoal.tuning.run import planned

    points, depends = planned(recipe, options)
    if as_json:
        click.echo(json.dumps({"type": "planned", "trials": points, "more_depend_on_results": depends}))
        return
    for number, point in enumerate(points):
        click.echo(f"trial {number}  " + ", ".join(f"{name}={value}" for name, value in point.items()))
    if depends:
        click.echo(f"and {depends} more, which depend on what these come to")
