"""`shoal runs`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import click

from shoal.cli.options import runs_option

STYLES = {"running": "cyan", "finished": "green", "failed": "red", "died": "red", "stopped": "yellow"}


@click.group(invoke_without_command=True, short_help="All runs, the newest first.")
@runs_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_context
def runs(ctx: click.Context, *, runs_dir: Path, as_json: bool) -> None:
    """All runs, the newest first: from their folders alone, whoever started them.

    \b
    shoal runs
    shoal runs --json | jq -r 'select(.status == "died").run_id'
    shoal runs send gpt-20261120-083112-a1b2        send what MLflow missed while it was down
    """
    if ctx.invoked_subcommand is not None:
        return
    from shoal.tracking.runs import list_runs

    found = list_runs(runs_dir)
    if as_json:
        for run in found:
            click.echo(json.dumps(dataclasses.asdict(run)))
    elif not found:
        click.echo(f"no runs in {runs_dir} yet; start one: shoal train jobs/gpt.py")
    else:
        _print_table(found)


@runs.command(short_help="Send what MLflow missed of a run.")
@click.argument("run")
@runs_option
def send(*, run: str, runs_dir: Path) -> None:
    """Send what MLflow has not got of RUN (its id or folder). For a run that ended while the server was down. RUN may
    be a sweep (its name or folder), whose trials are sent with it.

    \b
    shoal runs send gpt-20261120-083112-a1b2
    shoal runs send lr_schedule
    """
    from shoal.launch.prepare import find_run
    from shoal.tracking.recorder import send_pending
    from shoal.tuning.record import find_sweep, send_sweep

    sweep = find_sweep(runs_dir, run)
    if sweep is not None:
        for name, count in send_sweep(sweep):
            _say_sent(name, count)
        return
    folder = find_run(runs_dir.absolute(), run)
    _say_sent(folder.run_id, send_pending(folder))


def _say_sent(name: str, count: int) -> None:
    click.echo(f"{name}: {count} entries sent" if count else f"{name}: nothing was missing")


def _print_table(found: list) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from shoal.cli import text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("run", "status"):
        table.add_column(name, no_wrap=True)
    columns = ["step", "loss", "best val", "workers", "started", "took", "energy"]
    columns += ["cost"] if any(run.dollars is not None for run in found) else []
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    now = time.time()
    for run in found:
        table.add_row(
            run.run_id,
            Text(run.status, STYLES.get(run.status, "")),
            f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step),
            "" if run.loss is None else f"{run.loss:.4g}",
            "" if run.best_val_loss is None else f"{run.best_val_loss:.4g}",
            "" if run.workers is None else str(run.workers),
            "" if run.started is None else f"{text.age(now - run.started)} ago",
            "" if run.duration_s is None else text.duration(run.duration_s),
            "" if run.joules is None else text.energy(run.joules),
            *([] if "cost" not in columns else ["" if run.dollars is None else text.dollars(run.dollars)]),
        )
    # Into a pipe, nothing is cut to fit a terminal that is not there.
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, width=width).print(table)
