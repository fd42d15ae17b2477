"""`shoal status`, `attach`, `scale`, `kill-worker` and `stop`: a run that goes on in another process."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.cli.options import display_options, runs_option
from shoal.cli.ranges import Size
from shoal.errors import CapacityError, ConfigError

if TYPE_CHECKING:
    from shoal.coordinator.status import MemberStatus, RunStatus
    from shoal.launch.control import Line
    from shoal.run_folder import RunFolder
    from shoal.tracking.runs import RunSummary

    Standing = tuple[RunSummary, RunStatus | None, Sequence[MemberStatus]]

WATCH_S = 1.0


@click.command(short_help="Where a run stands, and its workers.")
@click.argument("run")
@click.option("--watch", is_flag=True, help="Show it again every second, until the run ends. Ctrl-C ends the watching.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with --watch one per line.")
@runs_option
def status(*, run: str, watch: bool, as_json: bool, runs_dir: Path) -> None:
    """Where RUN (its id or folder) stands and who works for it: where each worker runs, its state, what it does, its
    last step times, and whether it is slower than its peers. Of a run that is over: its last word and last members.

    Looking never keeps a run alive and never disturbs it.

    \b
    shoal status gpt-20261120-083112-a1b2
    shoal status gpt-20261120-083112-a1b2 --watch
    shoal status gpt-20261120-083112-a1b2 --json | jq '.members[] | select(.straggler).member'
    """
    with ExitStack() as stack:
        onlooker = _Onlooker(_folder(runs_dir, run), stack)
        if not watch:
            _show(*onlooker.look(), as_json=as_json)
        elif sys.stdout.isatty() and not as_json:
            _watch_live(onlooker)
        else:
            for standing in onlooker.until_over():
                _show(*standing, as_json=as_json)
                sys.stdout.flush()


@click.command(short_help="Follow a run that another process started.")
@click.argument("run")
@display_options
@runs_option
@click.pass_context
def attach(ctx: click.Context, *, run: str, as_json: bool, quiet: bool, runs_dir: Path) -> None:
    """Follow RUN (its id or folder) to its end, as the `shoal train` that started it would: for a run that was
    detached, or whose `shoal train` died.

    Ctrl-C stops the run after the present step with a checkpoint; a second one stops it at once. To look without being
    able to stop it: shoal status RUN --watch. The exit code is that of the run.

    \b
    shoal train jobs/gpt.py --address auto --detach
    shoal attach gpt-20261120-083112-a1b2
    shoal attach gpt-20261120-083112-a1b2 --json | jq .loss
    """
    from shoal.cli.display import make_display
    from shoal.launch.control import attach as follow

    if as_json and quiet:
        raise ConfigError("--json and --quiet exclude each other: --json prints nothing but JSON anyway")
    folder = _folder(runs_dir, run)
    with make_display(as_json=as_json, quiet=quiet) as display:
        ctx.exit(follow(folder, display).exit_code)


@click.command(short_help="Change how many workers a run may have, while it runs.")
@click.argument("run")
@click.argument("size", type=Size(), metavar="MIN:MAX|N")
@runs_option
def scale(*, run: str, size: tuple[int, int], runs_dir: Path) -> None:
    """Train RUN (its id or folder) with MIN to MAX workers from now on, or with exactly N.

    New workers start, build the model and warm up beside the training, and then join; who is too many leaves at the
    next boundary, and no step is lost. With fewer than MIN the run waits. The result does not depend on it: to
    rounding, with numerics=exact to the last bit.

    \b
    shoal scale gpt-20261120-083112-a1b2 2:6
    shoal scale gpt-20261120-083112-a1b2 4
    """
    from shoal.launch.control import line_to

    folder, (low, high) = _folder(runs_dir, run), size
    _fits(folder, high)
    instead = f"set it when it goes on: shoal resume {folder.run_id} --set workers.min={low} --set workers.max={high}"
    with line_to(folder, instead=instead) as line:
        click.echo(f"{folder.run_id}: {line.scale(low, high)}")


@click.command(name="kill-worker", short_help="End one worker of a run, to see what happens.")
@click.argument("run")
@click.argument("worker")
@click.option(
    "--leave", is_flag=True, help="Announce it, as a drain notice does: it hands over its part and then goes."
)
@runs_option
def kill_worker(*, run: str, worker: str, leave: bool, runs_dir: Path) -> None:
    """Kill WORKER (a name that `shoal status` shows, such as w1) of RUN, as if its machine had died. The others go on
    without it, and another one is started in its place.

    This is for trying it out; it uses none of failures.max_failures.

    \b
    shoal status gpt-20261120-083112-a1b2
    shoal kill-worker gpt-20261120-083112-a1b2 w1
    shoal kill-worker gpt-20261120-083112-a1b2 w1 --leave
    """
    from shoal.launch.control import line_to

    folder = _folder(runs_dir, run)
    with line_to(folder) as line:
        click.echo(f"{folder.run_id}: {line.end_worker(worker, 'leave' if leave else 'kill')}")


@click.command(short_help="Stop a run with a checkpoint.")
@click.argument("run")
@runs_option
def stop(*, run: str, runs_dir: Path) -> None:
    """End RUN (its id or folder) after the present step, with a checkpoint: what Ctrl-C does in the `shoal train` or
    `shoal attach` that follows it.

    \b
    shoal stop gpt-20261120-083112-a1b2
    shoal resume gpt-20261120-083112-a1b2
    """
    from shoal.launch.control import line_to

    folder = _folder(runs_dir, run)
    with line_to(folder, instead="there is nothing to stop") as line:
        line.stop("stopped by `shoal stop`")
    click.echo(f"{folder.run_id}: stopping after this step, checkpointing; go on with: shoal resume {folder.run_id}")


def _folder(runs_dir: Path, run: str) -> RunFolder:
    from shoal.launch.prepare import find_run

    return find_run(runs_dir.absolute(), run)


def _fits(folder: RunFolder, high: int) -> None:
    """Refuse more workers than there are virtual shards, before anything is asked of the run."""
    try:
        shards = int(json.loads(folder.job.read_text())["values"]["batch.virtual_shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # the coordinator, which knows, will say so
    if high > shards:
        raise ConfigError(
            f"{high} workers are more than the {shards} virtual shards of {folder.run_id}, and a worker without one "
            f"would idle; scale to at most {shards}, or start a new run with a larger batch.virtual_shards"
        )


class _Onlooker:
    """Says how a run stands, whenever it is asked: by its coordinator while it goes on, else from its files."""

    def __init__(self, folder: RunFolder, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._line: Line | None = None
        self._told = False

    def look(self) -> Standing:
        from shoal.cli.standing import members_of
        from shoal.tracking.ledger import of_kind
        from shoal.tracking.runs import LIVE, summarize

        run = summarize(self._folder, self._folder.read())
        line = self._connected() if run.status in LIVE else None
        if line is not None:
            try:
                return run, line.status(), line.members()
            except ConfigError:
                run = summarize(self._folder, self._folder.read())  # it ended just now
        views = deque(of_kind(self._folder.ledger, "view"), maxlen=1)
        return run, None, members_of(views[0] if views else None)

    def until_over(self) -> Iterator[Standing]:
        from shoal.tracking.runs import LIVE

        while True:
            standing = self.look()
            yield standing
            if standing[0].status not in LIVE:
                return
            time.sleep(WATCH_S)

    def _connected(self) -> Line | None:
        from shoal.launch.control import line_to

        if self._line is None:
            try:
                self._line = self._stack.enter_context(line_to(self._folder))
            except (CapacityError, ConfigError) as error:
                if not self._told:
                    click.echo(f"from its files alone, because {error}", err=True)
                self._told = True
        return self._line


def _show(run: RunSummary, now: RunStatus | None, members: Sequence[MemberStatus], *, as_json: bool) -> None:
    from rich.console import Console

    from shoal.cli.standing import as_json as shown

    if as_json:
        click.echo(json.dumps(shown(run, now, members)))
        return
    # Into a pipe, nothing is cut to fit a terminal that is not there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(_drawn(run, now, members, console.width))


def _watch_live(onlooker: _Onlooker) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        for standing in onlooker.until_over():
            live.update(_drawn(*standing, console.width), refresh=True)


def _drawn(run: RunSummary, now: RunStatus | None, members: Sequence[MemberStatus], width: int) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from shoal.cli.standing import GAP, RIGHT, headline, table

    head, *more = headline(run, now)
    names, rows = table(members, time.time(), width)
    drawn = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for name in names:
        drawn.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True)
    for member, row in zip(members, rows, strict=True):
        style = "yellow" if member.straggler else "" if member.state == "member" else "dim"
        drawn.add_row(*[Text(cell, style) for cell in row])
    return Group(Text(head, "bold"), *[Text(line, "yellow") for line in more], *([drawn] if rows else []))
