"""`shoal ui`."""

from __future__ import annotations

from pathlib import Path

import click

from shoal.cli.options import runs_option


@click.command(short_help="The record in a browser.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="Or the next free one.")
@runs_option
@click.pass_context
def ui(ctx: click.Context, *, host: str, port: int, runs_dir: Path) -> None:
    """Open the record in MLflow's UI: curves, parameters, reports of all runs. Ctrl-C ends it.

    \b
    shoal ui
    shoal ui --port 8080 --runs /data/runs
    """
    from shoal.tracking.ui import serve_ui
    from shoal.tuning.links import links, newest_sweep

    sweep = newest_sweep(runs_dir)
    further = None if sweep is None else lambda base: {f"newest sweep, {k}": v for k, v in links(sweep, base).items()}
    ctx.exit(serve_ui(runs_dir, host, port, say=click.echo, further=further))
