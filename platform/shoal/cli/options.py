"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from shoal.environment import RUNS
from shoal.errors import ShoalError

Command = TypeVar("Command", bound=Callable[..., Any])


def default_runs() -> Path:
    """`runs` in the current folder; in a job submitted to Ray, whose folder Ray deletes afterwards, one in the home."""
    return Path.home() / "shoal-runs" if "working_dir_files" in Path.cwd().parts else Path("runs")


def runs_option(command: Command) -> Command:
    """`--runs DIR`."""
    return click.option(
        "--runs",
        "runs_dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=default_runs,
        envvar=RUNS,
        show_default="runs; in a submitted Ray job ~/shoal-runs",
        show_envvar=True,
        metavar="DIR",
        help="Folder that holds the runs, their record and prepared data.",
    )(command)


def set_option(command: Command) -> Command:
    """`--set NAME=VALUE`, any number of times."""
    return click.option(
        "-s",
        "--set",
        "overrides",
        multiple=True,
        metavar="NAME=VALUE",
        help="Replace one value of the job, for example optimizer.lr=3e-4 or task.width=256. May be repeated.",
    )(command)


def new_data_option(command: Command) -> Command:
    """`--new-data`."""
    return click.option(
        "--new-data",
        is_flag=True,
        help="Go on although the data, or their order, are not those of the checkpoint: a new run takes its weights, "
        "optimizer and step, and the samples that come from that step on now.",
    )(command)


def display_options(command: Command) -> Command:
    """`--json` and `--quiet`."""
    command = click.option("-q", "--quiet", is_flag=True, help="Only warnings and the result.")(command)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout, nothing else.")(
        command
    )


def detach_options(command: Command) -> Command:
    """`--detach` and `--if-detached`."""
    command = click.option(
        "--if-detached",
        type=click.Choice(["stop", "continue"]),
        default="stop",
        show_default=True,
        help="What the run does when this command dies before it: stop a minute later with a checkpoint, or continue "
        "(then: shoal attach RUN). Only on a cluster that outlives the command (--address).",
    )(command)
    return click.option(
        "--detach", is_flag=True, help="Start the run, say its id, and return at once; it goes on by itself."
    )(command)


def where_options(command: Command) -> Command:
    """`--address` and `--tracking-uri`."""
    command = click.option(
        "--tracking-uri", metavar="URI", help="MLflow server or database. Default: SQLite in the runs folder."
    )(command)
    return click.option(
        "--address",
        metavar="ADDR",
        help="Ray cluster to join, for example auto. Default: RAY_ADDRESS, else a local one.",
    )(command)


def log_option(command: Command) -> Command:
    """`--log-format text|json`."""
    return click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How coordinator and workers write their log lines, which Ray keeps on each node (docs/operations.md).",
    )(command)


@contextmanager
def told_as_json(as_json: bool) -> Iterator[None]:
    """Machines that read stdout hear of errors there; the message for people goes to stderr as always."""
    try:
        yield
    except ShoalError as error:
        if as_json:
            click.echo(json.dumps({"type": "error", "error": str(error), "exit_code": error.exit_code}))
        raise
