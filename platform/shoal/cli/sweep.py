"""`shoal sweep`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from shoal.cli.options import runs_option, told_as_json, where_options
from shoal.errors import ConfigError, Interrupted, TrainingFailed

if TYPE_CHECKING:
    from shoal.tuning.recipe import SweepRecipe
    from shoal.tuning.trials import SweepState, TrialRow


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
        from shoal.tuning.recipe import load_sweep
        from shoal.tuning.run import SweepOptions, run_sweep

        if resume is not None and name is not None:
            raise ConfigError(f"--resume {resume} and --name {name} exclude each other: a sweep keeps its name")
        loaded = load_sweep(recipe, overrides)
        options = SweepOptions(runs_dir=runs_dir, name=name, resume=resume, address=address, tracking_uri=tracking_uri)
        if dry_run:
            _list(loaded, options, as_json=as_json)
            return
        state = run_sweep(loaded, options, Lines(sys.stderr if as_json else sys.stdout))
        if as_json:
            click.echo(json.dumps(_outcome(state)))
        codes = {"finished": 0, "stopped": Interrupted.exit_code}
        ctx.exit(codes.get(state.status, TrainingFailed.exit_code))


class Lines:
    """A line for whatever becomes of a trial."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._said: dict[int, str] = {}

    def opened(self, state: SweepState) -> None:
        facts = state.facts
        self._write(
            f"sweep {state.name}: {facts.trials} trials of {facts.job}, {facts.at_once} at once, {facts.search}"
        )

    def update(self, state: SweepState) -> None:
        for row in state.rows:
            said = _line(row, state)
            if self._said.get(row.number) != said:
                self._said[row.number] = said
                self._write(said)

    def event(self, kind: str, text: str) -> None:
        self._write(f"{kind}: {text}")

    def closed(self, state: SweepState) -> None:
        self.update(state)
        for line in closing(state):
            self._write(line)

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def closing(state: SweepState) -> list[str]:
    """The lines that a sweep leaves on the screen."""
    from shoal.tuning.recipe import BEST

    counts = ", ".join(f"{count} {status}" for status, count in state.counts.items() if count)
    lines = [f"{state.status}: {counts}; {state.reason}"]
    if state.best is not None:
        lines += [
            f"  best        trial {state.best.number}: {state.facts.metric} {state.best.best:.6g}, {_fields(state.best)}",
            f"  go on with  shoal train {Path(state.folder) / BEST}",
        ]
    lines.append(f"  sweep       {state.folder}")
    if state.status != "finished":
        lines.append(f"  resume      shoal sweep {state.facts.recipe} --resume {state.name}")
    return lines


def _line(row: TrialRow, state: SweepState) -> str:
    value = f" {state.facts.metric} {row.metric:.4g} at step {row.step}" if row.metric is not None else ""
    reason = f": {row.reason}" if row.reason and row.over else ""
    return f"trial {row.number} {row.status}{value} ({_fields(row)}){reason}"


def _fields(row: TrialRow) -> str:
    return ", ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in row.fields.items())


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
