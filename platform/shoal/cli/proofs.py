"""`shoal audit` and `shoal verify`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from shoal.cli.options import runs_option
from shoal.cli.ranges import OPEN, StepRange


@click.command(short_help="Prove that a run used every sample exactly once.")
@click.argument("run")
@click.option(
    "--steps", type=StepRange(), default=f"1:{OPEN}", show_default="all", metavar="A:B", help="Read only these again."
)
@click.option(
    "--content/--no-content", default=True, help="Whether to read the samples again, too: as much I/O as the run had."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@runs_option
@click.pass_context
def audit(
    ctx: click.Context, *, run: str, steps: tuple[int, int], content: bool, as_json: bool, runs_dir: Path
) -> None:
    """Prove that every epoch of RUN (its id or folder) held every sample exactly once, or name what is missing or
    doubled.

    From the ledger: the steps that count follow each other without gap or double, each belongs to the view that was
    current, and steps that were taken back were run again. From the data: the order permutes each epoch, and, read
    again, the samples of each step have the digest that its members recorded. Works while the run goes on, too.

    Exit code 0: clean. 1: not clean, or not proven; the reasons are told.

    \b
    shoal audit gpt-20261120-083112-a1b2
    shoal audit gpt-20261120-083112-a1b2 --no-content          the ledger alone: seconds, whatever the size
    shoal audit gpt-20261120-083112-a1b2 --steps 5000:6000     read only these again
    shoal audit gpt-20261120-083112-a1b2 --json | jq .faults
    """
    from shoal.audit.run import audit_run
    from shoal.audit.verdict import as_json as shown
    from shoal.audit.verdict import lines
    from shoal.cli.progress import ProgressLine
    from shoal.launch.prepare import find_run

    line = ProgressLine()
    found = audit_run(
        find_run(runs_dir.absolute(), run),
        within=steps,
        content=content,
        progress=lambda done, of: line.say(f"reading again: {done} of {of} steps"),
    )
    line.clear()
    for text in [json.dumps(shown(found))] if as_json else lines(found):
        click.echo(text)
    ctx.exit(0 if found.clean else 1)


@click.command(short_help="Compute a stretch of a run again and compare every bit.")
@click.argument("run")
@click.option("--steps", type=StepRange(), metavar="A:B", help="This stretch. Default: the whole run.")
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="On so many workers. Default: as many as the job allows."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    metavar="X",
    help="Relative difference that counts as equal: for runs with numerics=fast, which agree to rounding only.",
)
@click.option("--address", metavar="ADDR", help="Ray cluster to join. Default: RAY_ADDRESS, else a local one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@runs_option
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    run: str,
    steps: tuple[int, int] | None,
    workers: int | None,
    tolerance: float | None,
    address: str | None,
    as_json: bool,
    runs_dir: Path,
) -> None:
    """Compute a stretch of RUN (its id or folder) again, on any number of workers, and compare it with what was
    recorded: loss, learning rate and gradient norm of every step bit by bit, and the whole state where the stretch ends
    at a checkpoint of the run.

    Starts at the nearest checkpoint before A, or at the initial weights. Needs numerics=exact, or a --tolerance.
    Nothing is recorded, and the run itself is not touched.

    Exit code 0: identical. 1: not; the first step that differs is named with both values.

    \b
    shoal verify gpt-20261120-083112-a1b2                      all of it
    shoal verify gpt-20261120-083112-a1b2 --steps 101:200      from the checkpoint of step 100
    shoal verify gpt-20261120-083112-a1b2 --workers 1          whoever computes does not matter
    shoal verify fast-20261120-083112-a1b2 --tolerance 1e-3
    """
    from shoal.cli.display import make_display
    from shoal.cli.progress import OnlyProgress
    from shoal.launch.prepare import find_run
    from shoal.launch.verify import VerifyOptions
    from shoal.launch.verify import verify as compute

    options = VerifyOptions(steps=steps, workers=workers, tolerance=tolerance, address=address)
    with make_display(stream=sys.stderr, quiet=as_json) as display:
        found = compute(find_run(runs_dir.absolute(), run), options, OnlyProgress(display))
    for text in [json.dumps(found.to_json())] if as_json else found.lines():
        click.echo(text)
    ctx.exit(0 if found.identical else 1)
