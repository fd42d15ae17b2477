"""`shoal watch-node` and `shoal drain-node`: what runs beside Ray on a node that may be taken."""

from __future__ import annotations

import time

import click

from shoal.cli.options import Command
from shoal.errors import CapacityError


def _place_options(command: Command) -> Command:
    """`--address` and `--node-id`."""
    command = click.option(
        "--node-id",
        metavar="ID",
        help="Ray's id of the node, where several run on this machine. Default: the only one.",
    )(command)
    return click.option(
        "--address",
        metavar="ADDR",
        help="The cluster's head, host:port. Default: RAY_ADDRESS, else the cluster that this machine has joined.",
    )(command)


@click.command(name="watch-node", short_help="Hear a cloud's notice that it takes this node, and drain it.")
@click.option(
    "--provider",
    type=click.Choice(["auto", "aws", "gcp", "azure"]),
    default="auto",
    show_default=True,
    help="Whose notices; auto: of whoever's metadata service answers.",
)
@click.option("--endpoint", metavar="URL", help="The metadata service, if it is not at its usual address.")
@click.option(
    "--interval", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="Seconds between two looks."
)
@click.option("--rebalance", is_flag=True, help="On AWS, also leave when an interruption is only likely.")
@_place_options
@click.pass_context
def watch_node(
    ctx: click.Context,
    *,
    provider: str,
    endpoint: str | None,
    interval: float,
    rebalance: bool,
    address: str | None,
    node_id: str | None,
) -> None:
    """Run this beside `ray start` on every node that may be taken (spot, preemptible). When AWS, Google Cloud or Azure
    announces that, the node is drained in Ray with the notice's deadline: Shoal's workers leave it in time and no step
    is computed twice. Then it ends, with exit code 0. It needs no place in the cluster.

    A metadata service that hangs or is down ends nothing; one line says so.

    \b
    ray start --address $HEAD:6379 && shoal watch-node &
    shoal watch-node --provider aws --rebalance
    """
    import asyncio

    from shoal.notices.draining import drain_for, this_node
    from shoal.notices.endpoint import LINK_LOCAL, Endpoint
    from shoal.notices.notice import Notice
    from shoal.notices.watching import find_provider, next_notice

    async def hear() -> Notice:
        async with Endpoint(endpoint or LINK_LOCAL) as service:
            found = await find_provider(service, provider, interval_s=interval)
            _say(f"watching {found.name}'s notices at {service.base} every {interval:g}s")
            return await next_notice(found, service.ask, _say, interval_s=interval, recommendations=rebalance)

    notice = asyncio.run(hear())
    if not drain_for(notice, lambda: this_node(address, node_id), _say):
        ctx.exit(1)


@click.command(name="drain-node", short_help="Let Shoal's workers leave this node, and wait until they have.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=25.0,
    show_default=True,
    help="Seconds until this node goes; less than Kubernetes' terminationGracePeriodSeconds.",
)
@click.option("--why", default="drained by `shoal drain-node`", help="What the cluster is told.")
@_place_options
@click.pass_context
def drain_node(ctx: click.Context, *, deadline: float, why: str, address: str | None, node_id: str | None) -> None:
    """Drain this node in Ray, and wait until no worker of Shoal is left on it, at most until the deadline: for a
    Kubernetes preStop hook, or before a machine is switched off by hand. Exit code 1: somebody was still there.

    \b
    shoal drain-node
    shoal drain-node --deadline 100
    """
    from shoal.notices.draining import this_node, wait_until_left

    begun = time.time()
    this = this_node(address, node_id)
    try:
        this.drain(why, begun + deadline)
    except ConnectionError as error:
        raise CapacityError(f"this node could not be drained: {error}") from None
    left = wait_until_left(this, begun + deadline)
    if left:
        _say(f"after {deadline:g}s there are still {', '.join(left)} on node {this.node.id}")
        ctx.exit(1)
    _say(f"node {this.node.id} is drained, and nobody of Shoal is left on it after {time.time() - begun:.1f}s")


def _say(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)
