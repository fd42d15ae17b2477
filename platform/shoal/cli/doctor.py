"""`shoal doctor`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.cli.options import runs_option

if TYPE_CHECKING:
    from shoal.cli.checks import Check

COLOURS = {"ok": "green", "slow": "yellow", "fails": "red"}


@click.command(short_help="What is on this machine, and what would be slow or fail.")
@click.option("--address", metavar="ADDR", help="Ray cluster to look at. Default: RAY_ADDRESS.")
@runs_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_context
def doctor(ctx: click.Context, *, address: str | None, runs_dir: Path, as_json: bool) -> None:
    """What is on this machine, and what would be slow or fail, why, and what to do about it.

    Exit code 1 if something would fail the default job.

    \b
    shoal doctor
    shoal doctor --address auto
    shoal doctor --json | jq -r 'select(.status != "ok").remedy'
    """
    worst = "ok"
    for check in examine(runs_dir, address):
        worst = max(worst, check.status, key=list(COLOURS).index)
        click.echo(json.dumps(dataclasses.asdict(check)) if as_json else _line(check))
    if not as_json:
        click.echo(_verdict(worst))
    ctx.exit(1 if worst == "fails" else 0)


def examine(runs: Path, address: str | None) -> Iterator[Check]:
    """All checks, the quick ones first, each as soon as it is known."""
    from shoal.cli import machine, software
    from shoal.cli.checks import Probe, collect

    probes: dict[str, Probe] = {
        "python": software.python,
        "packages": software.packages,
        "cpu": machine.processors,
        "memory": machine.memory,
        "shared memory": machine.shared_memory,
        "disk": partial(machine.disk, runs),
        "open files": machine.open_files,
        "platform": machine.shadowed_platform,
        "torch's build": software.devices,
        "gloo": software.collectives,
        "deepspeed ops": software.deepspeed_operations,
        "cluster": partial(software.ray_cluster, address),
    }
    for name, probe in probes.items():
        yield from collect(name, probe)


def _line(check: Check) -> str:
    said = f"{check.found} -> {check.remedy}" if check.remedy and check.status != "ok" else check.found
    return f"{click.style(f'{check.status:<5}', fg=COLOURS[check.status])}  {check.name:<14} {said}"


def _verdict(worst: str) -> str:
    return {
        "ok": "Everything is in order.",
        "slow": "Training works here; what is marked slow could be better.",
        "fails": "The default job would fail here: see the lines marked fails.",
    }[worst]
