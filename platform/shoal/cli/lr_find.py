"""`shoal lr-find`."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.cli.options import runs_option, set_option, told_as_json
from shoal.errors import ConfigError

if TYPE_CHECKING:
    from shoal.launch.lr_find import RateFound

JSON, PAGE = "lr_find.json", "lr_find.html"


@click.command(name="lr-find", short_help="Find a learning rate by training with rising ones.")
@click.argument("recipe")
@set_option
@click.option("--from", "low", type=float, default=1e-6, show_default=True, metavar="RATE", help="Of the first step.")
@click.option("--to", "high", type=float, default=1.0, show_default=True, metavar="RATE", help="Of the last step.")
@click.option("--steps", type=int, default=100, show_default=True, metavar="N", help="Steps between them, at most.")
@click.option("--address", metavar="ADDR", help="Ray cluster to join. Default: RAY_ADDRESS, else a local one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@runs_option
def lr_find(
    *,
    recipe: str,
    overrides: tuple[str, ...],
    low: float,
    high: float,
    steps: int,
    address: str | None,
    as_json: bool,
    runs_dir: Path,
) -> None:
    """The learning-rate range test (Smith 2017, arXiv:1506.01186) of the job that RECIPE defines: one short training in
    which the rate rises from step to step by the same ratio, until the loss diverges. A tenth of the rate at which the
    loss was lowest is a good peak rate for a schedule with warm-up.

    The job's own rate, schedule and budget do not matter. Nothing is evaluated, and no weights are kept: a page and a
    JSON file stay in the folder lr-find beside the runs. docs/lr_find.md says how to read them, and where it misleads.

    \b
    shoal lr-find jobs/gpt.py
    shoal lr-find jobs/gpt.py --set optimizer.name=lion --from 1e-7 --to 0.1
    shoal lr-find jobs/digits.py --steps 200 --set batch.size=256
    shoal lr-find jobs/gpt.py --json | jq .suggestion
    """
    with told_as_json(as_json):
        from shoal.cli.display import make_display
        from shoal.cli.progress import OnlyProgress
        from shoal.job.overrides import apply
        from shoal.job.recipe import load_recipe
        from shoal.launch.api import RunOptions
        from shoal.launch.lr_find import Range, find_rate

        asked = Range(low=low, high=high, steps=steps)
        loaded = load_recipe(recipe)
        options = RunOptions(runs_dir=runs_dir, address=address, recipe=loaded, overrides=overrides)
        with make_display(stream=sys.stderr, quiet=as_json) as display:
            done = find_rate(apply(loaded.job, overrides), asked, options, OnlyProgress(display))
        command = _go_on(recipe, overrides, done.finding.suggestion)
        said = {**done.to_json(), "go_on": command}
        page = _write(done, said, command)
    for line in [json.dumps(said)] if as_json else _lines(done, command, page):
        click.echo(line)


def _go_on(recipe: str, overrides: Sequence[str], rate: float | None) -> str | None:
    """The command that trains with the suggested rate."""
    if rate is None:
        return None
    kept = [o for o in overrides if o.partition("=")[0].strip() != "optimizer.lr"]
    words = [word for override in [*kept, f"optimizer.lr={rate:g}"] for word in ("--set", override)]
    return shlex.join(["shoal", "train", recipe, *words])


def _lines(done: RateFound, command: str | None, page: Path) -> Iterator[str]:
    from shoal.cli.charts import blocks
    from shoal.cli.lr_find_page import axes, title

    found = done.finding
    yield title(done)
    if len(found.smoothed) > 1:
        columns = min(max(shutil.get_terminal_size().columns - 12, 30), 100)
        last = len(found.smoothed) - 1
        at = [round(i * last / (columns - 1)) for i in range(columns)]
        ends = axes(found)
        yield ""
        yield from blocks([min(found.smoothed[i], ends.y) for i in at], ends, rows=10)
    yield ""
    yield found.reason
    if found.suggestion is not None:
        why = "the rate of the fastest fall" if found.tenth is None else "a tenth of the rate of the lowest loss"
        yield f"  suggestion  {found.suggestion:g}, {why}"
    yield f"  page        {page.absolute().as_uri()}"
    if command is not None:
        yield f"  go on with  {command}"


def _write(done: RateFound, said: dict[str, object], command: str | None) -> Path:
    from shoal.cli.lr_find_page import page
    from shoal.run_folder import write_json

    place = done.folder.path / PAGE
    try:
        write_json(done.folder.path / JSON, said)
        place.write_text(page(done, command))
    except OSError as error:
        raise ConfigError(f"the result cannot be written to {done.folder.path}: {error.strerror}") from error
    return place
