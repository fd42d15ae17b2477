"""`shoal simulate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shoal.errors import ConfigError

if TYPE_CHECKING:
    from shoal.simulate.costs import Costs
    from shoal.simulate.outcome import Advice, Interval, Outcome
    from shoal.simulate.play import Setting
    from shoal.simulate.trace import Trace

HOUR_S = 3600.0
SYNTHETIC_HOURS = 24.0
BUCKETS = ("useful", "overhead", "redone", "lost", "stopped", "start", "idle")


@click.command(short_help="Goodput and cost of a run on a spot trace, at any size.")
@click.option("--trace", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="When nodes come and go: lines of milliseconds,add|remove,node.")  # fmt: skip
@click.option("--mtbf", type=float, metavar="HOURS",
              help="Instead: a node is lost by chance, one of all each so many hours.")  # fmt: skip
@click.option("--away", type=float, default=600.0, show_default=True, metavar="S",
              help="With --mtbf: until another node takes its place.")  # fmt: skip
@click.option("--hours", type=float, show_default="length of the trace; 24", help="How long the run is watched.")
@click.option("--workers", type=int, default=32, show_default=True, help="The most that the run has.")
@click.option("--per-node", type=int, show_default="workers by the trace's most nodes; 8", help="Workers of a node.")
@click.option("--min-workers", type=int, default=1, show_default=True, help="With fewer the run waits.")
@click.option("--faster", type=float, default=1.0, show_default=True, help="Play the trace so many times as fast.")
@click.option("--spread", type=float, default=0.0, show_default=True, metavar="S",
              help="Each event up to so much later by chance, as in a trace that knows only minutes.")  # fmt: skip
@click.option(
    "--notice-share", type=float, default=0.0, show_default=True, help="Part of the removals that is announced."
)
@click.option("--notice", type=float, default=120.0, show_default=True, metavar="S", help="How long before.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is by chance.")
@click.option("--model-size", type=float, default=7e9, show_default=True, help="Parameters.")
@click.option("--tokens", type=float, default=4e6, show_default=True, help="Of a global batch.")
@click.option("--virtual-shards", type=int, show_default="8 for each worker", help="Parts of a global batch.")
@click.option("--engine", type=click.Choice(["replicated", "zero1", "zero2", "zero3"]), default="zero1",
              show_default=True, help="How the state is divided.")  # fmt: skip
@click.option("--snapshot-every", type=int, show_default="as a run chooses", help="Steps between snapshots.")
@click.option("--checkpoint-every", type=int, show_default="the optimum of each method", help="Steps.")
@click.option("--cost", "settings", multiple=True, metavar="NAME=VALUE",
              help="Another cost, for example detect_s=0.1. May be repeated.")  # fmt: skip
@click.option("--costs", "show_costs", is_flag=True, help="List all costs with their sources, and end.")
@click.option("--per-hour", type=float, help="Dollars for an hour of one worker.")
@click.option("--instance", help="Or: the type of machine, whose price is shared by --per-node workers.")
@click.option("--market", type=click.Choice(["on-demand", "spot"]), default="spot", show_default=True,
              help="Whose price of the machine.")  # fmt: skip
@click.option("--region", help="Of the price. Default: the first one of the table.")
@click.option("--prices", metavar="FILE", help="A table of prices with SkyPilot's columns (docs/cost.md).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def simulate(**options: Any) -> None:
    """What a spot market does to a run of any size, and what to do about it; nothing is trained.

    Three ways of going on are played through the same trace: in place (Shoal), restart in place (all processes start
    again on the nodes that are there, from the last checkpoint, as in Ray Train and torchrun), and restart (a new job).
    Each saves as often as is best for it. Costs are measured or cited (--costs); docs/simulate.md says what is in the
    model and what is not.

    \b
    shoal simulate --mtbf 2 --workers 512 --model-size 7e9
    shoal simulate --trace aws-p3-spot.csv --workers 512 --instance p4d.24xlarge
    shoal simulate --trace aws-p3-spot.csv --workers 128 --engine zero3 --model-size 70e9 --notice-share 1
    shoal simulate --mtbf 3 --workers 1024 --hours 72 --cost detect_s=1 --cost bandwidth=50e9 --json
    shoal simulate --costs
    """
    from shoal.simulate.costs import Costs, with_values
    from shoal.simulate.outcome import compare

    costs = with_values(Costs(), options["settings"])
    if options["show_costs"]:
        for line in [json.dumps(_costs_json(costs))] if options["as_json"] else _cost_lines(costs):
            click.echo(line)
        return
    _check(options)
    price, said = _price(options)
    setting = _setting(options, costs)
    outcomes, advice = compare(
        setting, snapshot_every=options["snapshot_every"], checkpoint_every=options["checkpoint_every"]
    )
    if options["as_json"]:
        click.echo(json.dumps(_as_json(options, setting, outcomes, advice, price)))
        return
    for line in _lines(options, setting, outcomes, advice, price, said):
        click.echo(line)


# What is asked for ---------------------------------------------------------------------------------------------------


def _check(options: dict[str, Any]) -> None:
    """Raises ConfigError for numbers that cannot be."""
    if (options["path"] is None) is (options["mtbf"] is None):
        raise ConfigError("say either --trace FILE or --mtbf HOURS: when nodes come and go")
    for name in ("mtbf", "hours", "workers", "per_node", "min_workers", "faster", "snapshot_every", "checkpoint_every",
                 "virtual_shards"):  # fmt: skip
        value = options[name]
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} {value:g} must be more than 0")
    for name in ("away", "spread", "notice", "notice_share"):
        if not 0 <= options[name] < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} {options[name]:g} must be 0 or more")
    if options["notice_share"] > 1:
        raise ConfigError(f"--notice-share {options['notice_share']:g} is a share of all removals: at most 1")
    if options["min_workers"] > options["workers"]:
        raise ConfigError(f"--min-workers {options['min_workers']} is more than --workers {options['workers']}")


def _setting(options: dict[str, Any], costs: Costs) -> Setting:
    from shoal.simulate.play import Setting
    from shoal.simulate.trace import changed, poisson
    from shoal.simulate.work import Work

    workers, seed, hours = options["workers"], options["seed"], options["hours"]
    if options["path"] is not None:
        trace = _read(options["path"])
        per_node = options["per_node"] or max(1, workers // trace.peak)
    else:
        per_node = options["per_node"] or min(8, workers)
        trace = poisson(
            max(1, workers // per_node), between_s=options["mtbf"] * HOUR_S, away_s=options["away"],
            length_s=(hours or SYNTHETIC_HOURS) * HOUR_S * options["faster"], seed=seed,
        )  # fmt: skip
    if per_node > workers:
        raise ConfigError(f"--per-node {per_node} is more than --workers {workers}: not even one node fits")
    trace = changed(
        trace, faster=options["faster"], spread_s=options["spread"], notice_share=options["notice_share"],
        notice_s=options["notice"], seed=seed,
    )  # fmt: skip
    if hours is not None and hours * HOUR_S > trace.length_s * (1 + 1e-9):
        raise ConfigError(
            f"--hours {hours:g} is more than the {trace.length_s / HOUR_S:.4g} h that the trace tells of; say less, or "
            f"make a trace of any length by --mtbf"
        )
    most = workers // per_node * per_node
    shards = options["virtual_shards"] or 8 * most
    if shards < options["min_workers"]:
        raise ConfigError(
            f"--virtual-shards {shards} are fewer than --min-workers {options['min_workers']}: a worker needs one"
        )
    stage = 0 if options["engine"] == "replicated" else int(options["engine"][-1])
    work = Work(
        model_size=options["model_size"], tokens=options["tokens"], virtual_shards=shards, stage=stage, costs=costs
    )
    return Setting(
        work=work, trace=trace, length_s=hours * HOUR_S if hours else trace.length_s, per_node=per_node,
        nodes=workers // per_node, least=options["min_workers"],
    )  # fmt: skip


def _read(path: Path) -> Trace:
    from shoal.simulate.trace import read_trace

    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--trace {path} cannot be read: {error}; name a file of text") from None
    return read_trace(lines, str(path))


def _price(options: dict[str, Any]) -> tuple[float | None, str]:
    """(dollars for an hour of one worker, where that comes from). A worker is a GPU, or a machine that has none."""
    from shoal.job import Cost, Workers
    from shoal.tracking.prices import tariff_of

    cost = Cost(per_hour=options["per_hour"], instance=options["instance"], region=options["region"],
                market=options["market"], prices=options["prices"])  # fmt: skip
    tariff = tariff_of(cost, Workers(cpus=1))
    machine = tariff.rows[cost.instance][0] if cost.instance is not None else None
    if machine is not None:
        whole = Workers(cpus=1, gpus=1) if machine.gpus else Workers(cpus=machine.cpus)
        tariff = tariff_of(cost, whole)
    rate = tariff.rate({})
    return (rate.per_hour, rate.said) if rate is not None else (None, "")


# What is shown -------------------------------------------------------------------------------------------------------


def _lines(
    options: dict[str, Any],
    setting: Setting,
    outcomes: Sequence[Outcome],
    advice: Advice,
    price: float | None,
    said: str,
) -> Iterator[str]:
    from shoal.cli import text

    work, n = setting.work, setting.nodes * setting.per_node
    trace, hours = setting.trace, setting.trace.length_s / HOUR_S
    yield f"{trace.source}: {trace.removals} nodes lost in {hours:.4g} h, at most {trace.peak} at once"
    if setting.length_s < trace.length_s:
        yield f"of it {setting.length_s / HOUR_S:.4g} h are played"
    even = work.step_s(min(n, work.virtual_shards))
    yield (
        f"{setting.nodes} nodes of {setting.per_node} = {n} workers; {text.amount(work.model_size)} parameters, "
        f"{options['engine']}, {text.amount(work.tokens)} tokens a step in {work.virtual_shards} virtual shards: "
        f"{even:.3g} s with all workers"
    )
    if price is not None:
        yield f"price of a worker: ${price:.4g}/h ({said})"
    yield ""
    yield f"{'':<18}" + "".join(f"{o.method:>18}" for o in outcomes)
    rows = {"goodput": [f"{o.goodput:.3f}" for o in outcomes]}
    for bucket in BUCKETS:
        rows[f"  {bucket}"] = [f"{getattr(o.spent, bucket) / o.available:.1%}" for o in outcomes]
    rows["steps"] = [str(o.steps) for o in outcomes]
    rows["steps redone"] = [str(o.steps_redone) for o in outcomes]
    rows["tokens redone"] = [text.amount(o.steps_redone * work.tokens) for o in outcomes]
    rows["views"] = [str(o.views) for o in outcomes]
    rows["from checkpoints"] = [str(o.from_storage) for o in outcomes]
    rows["longest stop"] = [f"{o.longest_stop_s:.3g} s" for o in outcomes]
    rows["snapshot each"] = [f"{o.snapshot_every} steps" if o.snapshot_every else "-" for o in outcomes]
    rows["checkpoint each"] = [f"{o.checkpoint_every} steps" for o in outcomes]
    if price is not None:
        found = [o.to_json(work.tokens, price) for o in outcomes]
        rows["cost"] = [text.dollars(f["dollars"]) for f in found]
        rows["  wasted"] = [text.dollars(f["dollars_wasted"]) for f in found]
        each = [f["dollars_per_billion_tokens"] for f in found]
        rows["  per 1e9 tokens"] = [text.dollars(x) if x is not None else "-" for x in each]
    for name, values in rows.items():
        yield f"{name:<18}" + "".join(f"{value:>18}" for value in values)
    yield ""
    yield from _advice(advice)


def _advice(advice: Advice) -> Iterator[str]:
    """How often to save, by Young and Daly."""
    said = (
        ("snapshots in memory", advice.snapshot, "no loss that they would help against"),
        ("checkpoints, in place", advice.checkpoint, "the trace never needed one; each half an hour is cheap"),
        ("checkpoints, restarts", advice.checkpoint_restart, "nothing is lost"),
    )
    for what, interval, otherwise in said:
        yield f"best {what}: " + (_interval(interval) if interval is not None else otherwise)


def _interval(found: Interval) -> str:
    return (
        f"each {found.steps} steps ({found.daly_s:.3g} s by Daly, {found.young_s:.3g} s by Young: one takes "
        f"{found.save_s:.3g} s, a loss comes each {found.between_s:.4g} s)"
    )


def _as_json(
    options: dict[str, Any], setting: Setting, outcomes: Sequence[Outcome], advice: Advice, price: float | None
) -> dict[str, Any]:
    work = setting.work
    return {
        "trace": {"source": setting.trace.source, "removals": setting.trace.removals, "peak": setting.trace.peak},
        "seconds": setting.length_s,
        "nodes": setting.nodes,
        "workers_per_node": setting.per_node,
        "workers": setting.nodes * setting.per_node,
        "engine": options["engine"],
        "model_size": work.model_size,
        "tokens_per_step": work.tokens,
        "virtual_shards": work.virtual_shards,
        "step_s": work.step_s(min(setting.nodes * setting.per_node, work.virtual_shards)),
        "dollars_per_worker_hour": price,
        "costs": asdict(work.costs),
        "methods": [o.to_json(work.tokens, price) for o in outcomes],
        "best": {
            name: asdict(interval) if interval is not None else None
            for name, interval in (
                ("snapshot", advice.snapshot),
                ("checkpoint", advice.checkpoint),
                ("checkpoint_restart", advice.checkpoint_restart),
            )
        },
    }


def _cost_lines(costs: Costs) -> Iterator[str]:
    from shoal.simulate.costs import MEANING

    for name, (meaning, source) in MEANING.items():
        value = getattr(costs, name)
        yield f"{name}={'(computed)' if value is None else format(value, 'g')}"
        yield f"    {meaning}"
        yield f"    source: {source}"


def _costs_json(costs: Costs) -> dict[str, Any]:
    from shoal.simulate.costs import MEANING

    return {
        name: {"value": getattr(costs, name), "meaning": meaning, "source": source}
        for name, (meaning, source) in MEANING.items()
    }
