"""`shoal`: the entry point, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from shoal import __version__
from shoal.cli.cluster import cluster
from shoal.cli.control import attach, kill_worker, scale, status, stop
from shoal.cli.data import data
from shoal.cli.doctor import doctor
from shoal.cli.lr_find import lr_find
from shoal.cli.node import drain_node, watch_node
from shoal.cli.proofs import audit, verify
from shoal.cli.runs import runs
from shoal.cli.schedule import schedule
from shoal.cli.simulate import simulate
from shoal.cli.submit import submit
from shoal.cli.sweep import sweep
from shoal.cli.training import resume, train
from shoal.cli.ui import ui
from shoal.errors import Interrupted, ShoalError
from shoal.redaction import redact


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="shoal", message="%(prog)s %(version)s")
def shoal() -> None:
    """Elastic training of deep-learning models on Ray.

    \b
    shoal doctor                                 what is on this machine, and what would be slow
    shoal train jobs/gpt.py                      train; progress here, record in runs/
    shoal train jobs/gpt.py --set workers.max=4 --set optimizer.lr=3e-4
    shoal schedule jobs/gpt.py --compare Rex     learning rates over the budget, as a picture
    shoal sweep tuning/lr_schedule.py            many jobs made from one: which is best?
    shoal lr-find jobs/gpt.py                    which learning rate: train with rising ones
    shoal runs                                   all runs
    shoal status RUN                             its workers: where they run, what they do
    shoal scale RUN 2:6                          more or fewer workers, while it runs
    shoal resume RUN                             go on from the last checkpoint
    shoal submit jobs/gpt.py                     train on a cluster, as a job that needs this machine no more
    shoal audit RUN                              prove that every sample was used exactly once
    shoal simulate --mtbf 2 --workers 512        what spot nodes would do to a run of that size
    shoal cluster check my_cluster.yaml          is this file right, and what would the cluster cost?
    shoal ui                                     the record in a browser
    """


for command in (
    *(train, resume, attach, status, scale, kill_worker, stop),
    *(
        submit,
        sweep,
        audit,
        verify,
        runs,
        data,
        schedule,
        lr_find,
        simulate,
        cluster,
        watch_node,
        drain_node,
        ui,
        doctor,
    ),
):
    shoal.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. Mistakes of users and failed runs give one message; anything else is our bug and keeps
    its traceback."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        return shoal.main(arguments, prog_name="shoal", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return Interrupted.exit_code
    except ShoalError as error:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {redact(str(error))}", err=True)
        return error.exit_code
