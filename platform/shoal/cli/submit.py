"""`shoal submit`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.cli.options import set_option, told_as_json
from shoal.errors import ConfigError, Interrupted, TrainingFailed

if TYPE_CHECKING:
    from shoal.submit.jobs import JobServer, SentJob

CODES = {"succeeded": 0, "failed": TrainingFailed.exit_code, "stopped": Interrupted.exit_code}


@click.command(short_help="Train on a cluster, as a Ray job that needs this machine no more.")
@click.argument("recipe", required=False)
@click.option("--sweep", is_flag=True, help="RECIPE defines a sweep.")
@set_option
@click.option("--resume", metavar="RUN", help="Go on with this run or sweep of the cluster; a run needs no RECIPE.")
@click.option("--new-data", is_flag=True, help="As for `shoal resume`.")
@click.option("--name", metavar="NAME", help="Name of the job, and of its run. Default: job, date, time, four letters.")
@click.option(
    "--address",
    metavar="ADDR",
    help="Dashboard of the cluster. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else http://localhost:8265.",
)
@click.option("--tracking-uri", metavar="URI", help="MLflow, as the cluster reaches it.")
@click.option("--runs", metavar="DIR", help="Folder of the runs on the head node. Default: ~/shoal-runs.")
@click.option(
    "--working-dir",
    type=click.Path(path_type=Path),
    default=".",
    show_default="this folder",
    metavar="DIR",
    help="Folder that goes to the cluster, without what .gitignore names, results, caches and files of secrets.",
)
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave this out of it, too (as in .gitignore).")
@click.option("--env", "environment", multiple=True, metavar="NAME[=VALUE]", help="A variable for the job; no secrets.")
@click.option("--no-wait", is_flag=True, help="Return once the cluster has the job, instead of following it.")
@click.option("--follow", metavar="ID", help="Follow a job that was submitted before.")
@click.option("--status", metavar="ID", help="How a job stands.")
@click.option("--stop", metavar="ID", help="End a job after its present step, with a checkpoint.")
@click.option("--list", "listing", is_flag=True, help="All jobs of the cluster.")
@click.option(
    "--json", "as_json", is_flag=True, help="Only JSON on stdout, also what the job says; the rest on stderr."
)
@click.pass_context
def submit(ctx: click.Context, **asked: object) -> None:
    """Send RECIPE, and the folder that it is in, to a cluster as a job of Ray's; follow it until it ends.

    The job belongs to the cluster: Ctrl-C, or the end of this machine, leaves it alone. Nothing of this machine's
    environment goes along. `ray job submit --working-dir . -- shoal train RECIPE` does the same on a cluster that has
    Shoal installed.

    \b
    shoal submit jobs/gpt.py --address http://localhost:8265 --set workers.max=8
    shoal submit jobs/gpt.py --no-wait
    shoal submit --sweep tuning/lr_schedule.py --set trials=20
    shoal submit --list
    shoal submit --follow gpt-20261120-083112-a1b2
    shoal submit --stop gpt-20261120-083112-a1b2
    shoal submit --resume gpt-20261120-083112-a1b2
    """
    with told_as_json(bool(asked["as_json"])):
        ctx.exit(_do(**asked))  # type: ignore[arg-type]


def _do(
    *, follow: str | None, status: str | None, stop: str | None, listing: bool, address: str | None, no_wait: bool,
    as_json: bool, **asked: object,
) -> int:  # fmt: skip
    from shoal.submit.jobs import connect

    modes = [f"--{name}" for name, given in (("follow", follow), ("status", status), ("stop", stop)) if given]
    modes += ["--list"] if listing else []
    beside = modes[1:] + [str(asked["recipe"])] * bool(asked["recipe"])
    if modes and beside:
        raise ConfigError(f"{modes[0]} and {beside[0]} exclude each other; give one of them")
    if not modes:
        return _send(address, wait=not no_wait, as_json=as_json, **asked)
    server = connect(address, os.environ)
    if follow is not None:
        return _follow(server, follow, as_json=as_json)
    if stop is not None:
        return _stop(server, stop)
    _show([server.look(status)] if status is not None else server.list(), as_json=as_json)
    return 0


def _send(address: str | None, *, wait: bool, as_json: bool, **asked: object) -> int:
    from shoal.submit.jobs import connect
    from shoal.submit.sending import Wish, make_submission

    asked["folder"] = asked.pop("working_dir")
    submission = make_submission(Wish(as_json=as_json, **asked), os.environ)  # type: ignore[arg-type]
    server = connect(address, os.environ)
    name = server.submit(submission)
    if as_json:
        click.echo(json.dumps({"type": "submitted", "job": name, "address": server.address}))
    else:
        click.echo(f"{name} is a job of the cluster at {server.address} now, and goes on without this machine")
        click.echo(f"  follow  shoal submit --follow {name}\n  stop    shoal submit --stop {name}")
    return _follow(server, name, as_json=as_json) if wait else 0


def _follow(server: JobServer, name: str, *, as_json: bool) -> int:
    write = _Split() if as_json else _write
    try:
        job = server.follow(name, write)
    except KeyboardInterrupt:
        raise Interrupted(
            f"not followed any more; {name} goes on. Follow it with: shoal submit --follow {name}, end it with: "
            f"shoal submit --stop {name}"
        ) from None
    if as_json:
        write("\n")  # the last line may have had no end
        click.echo(json.dumps({"type": "job", **asdict(job)}))
    elif job.status != "succeeded":
        click.echo(f"{name} {job.status}: {job.message or 'its log is all that is known'}", err=True)
    return CODES[job.status]


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class _Split:
    """Writes the lines of a log that are JSON to stdout, and those that Ray and people's code add to stderr."""

    def __init__(self) -> None:
        self._rest = ""

    def __call__(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(None, lines):
            click.echo(line, err=not line.startswith("{"))


def _stop(server: JobServer, name: str) -> int:
    if server.stop(name):
        click.echo(f"{name}: stopping after this step, checkpointing; its end: shoal submit --follow {name}")
        return 0
    job = server.look(name)
    raise ConfigError(f"{name} is over: it {job.status}; go on with its run: shoal submit --resume {name}")


def _show(jobs: Iterable[SentJob], *, as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from shoal.cli import text

    if as_json:
        for job in jobs:
            click.echo(json.dumps(asdict(job)))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("job", "status", "started", "took", "command"):
        table.add_column(name, no_wrap=name != "command")
    now = time.time()
    for job in jobs:
        begun = job.started
        took = "" if begun is None else text.duration((job.ended or now) - begun)
        started = "" if begun is None else f"{text.age(now - begun)} ago"
        table.add_row(job.name, job.status, started, took, job.command)
    # Into a pipe, nothing is cut to fit a terminal that is not there.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
