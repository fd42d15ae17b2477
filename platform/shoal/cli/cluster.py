"""`shoal cluster`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.errors import ConfigError

if TYPE_CHECKING:
    from shoal.clusters.checking import Checked
    from shoal.clusters.groups import Group
    from shoal.clusters.reading import Finding


@click.group(short_help="Files that describe clusters.")
def cluster() -> None:
    """Files that describe clusters: those in cluster_configs/, and your own copies of them."""


@cluster.command(short_help="Check a file before `ray up` or `kubectl apply`.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--crd",
    "crds",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="KubeRay's definitions, as your own cluster has them: kubectl get crd rayclusters.ray.io --output yaml.",
)
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
@click.pass_context
def check(ctx: click.Context, *, file: Path, crds: tuple[Path, ...], as_json: bool) -> None:
    """Check FILE, a configuration of `ray up` or a manifest of KubeRay: its YAML, Ray's schema and checks, what the
    cloud's own library says of its machines, and whether a run on Shoal would do well on it. No cloud is asked.

    Exit code 2 if something is wrong or still to be filled in.

    \b
    shoal cluster check cluster_configs/aws.yaml
    shoal cluster check my_cluster.yaml
    shoal cluster check cluster_configs/kuberay/raycluster.yaml
    """
    from shoal.clusters.checking import check as look

    found = look(file, crds)
    if as_json:
        click.echo(json.dumps({**asdict(found), "path": str(found.path)}))
    else:
        _show(found)
    bad = len(found.errors) + len(found.blanks)
    if bad:
        raise ConfigError(f"{file} cannot be used yet: {bad} {'place needs' if bad == 1 else 'places need'} a hand")
    ctx.exit(0)


def _show(found: Checked) -> None:
    for word, colour, findings in (
        ("wrong", "red", found.errors),
        ("fill in", "yellow", found.blanks),
        ("note", "cyan", found.notes),
    ):
        for finding in findings:
            click.echo(f"{click.style(word, fg=colour)}  {found.path}:{finding.line}: {_said(finding)}")
    for skipped in found.skipped:
        click.echo(f"{click.style('not checked', fg='cyan')}  {skipped}")
    if found.groups and not found.errors:
        _show_groups(found.groups)


def _said(finding: Finding) -> str:
    return f"{finding.place}: {finding.reason}" if finding.place else finding.reason


def _show_groups(groups: Sequence[Group]) -> None:
    from rich.console import Console
    from rich.table import Table

    from shoal.cli.text import dollars

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name, right in (
        ("nodes", 0),
        ("how many", 1),
        ("CPUs", 1),
        ("GPUs", 1),
        ("machine", 0),
        ("", 0),
        ("$/h each", 1),
    ):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for group in groups:
        upper = "any number" if group.high >= 1 << 30 else str(group.high)
        many = str(group.low) if group.low == group.high else f"{group.low} to {upper}"
        price = "" if group.per_hour is None else dollars(group.per_hour)
        sizes = (f"{group.cpus:g}", f"{group.gpus:g}")
        table.add_row(group.name, many, *sizes, group.machine or "", group.market or "", price)
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
    least = sum(group.low * (group.per_hour or 0) for group in groups)
    most = sum(group.high * (group.per_hour or 0) for group in groups)
    unpriced = [group.name for group in groups if group.per_hour is None]
    if len(unpriced) < len(groups):
        rest = f", and what {', '.join(unpriced)} cost" if unpriced else ""
        click.echo(f"{dollars(least)} an hour with the fewest nodes, {dollars(most)} with all of each{rest}")
