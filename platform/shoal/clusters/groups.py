"""A kind of node in a cluster: how many there may be, what each has, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shoal.clusters.reading import Finding
from shoal.errors import ConfigError
from shoal.job import Cost, Workers
from shoal.tracking.prices import INSTANCE_LABEL, MARKET_LABEL, tariff_of


@dataclass(frozen=True, slots=True)
class Group:
    """One kind of node."""

    name: str
    low: int
    high: int
    cpus: float
    gpus: float
    machine: str | None
    market: str | None
    per_hour: float | None
    """Dollars for one node; None: the table has no price of it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one kind of check found."""

    errors: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    groups: tuple[Group, ...]
    skipped: tuple[str, ...] = ()


def priced(name: str, low: int, high: int, resources: Mapping[str, float], labels: Mapping[str, str]) -> Group:
    """A group with the price of a whole machine, as Shoal's table has it."""
    cpus, gpus = float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
    return Group(
        name=name,
        low=low,
        high=high,
        cpus=cpus,
        gpus=gpus,
        machine=labels.get(INSTANCE_LABEL),
        market=labels.get(MARKET_LABEL),
        per_hour=price(labels),
    )


def price(labels: Mapping[str, str]) -> float | None:
    """Dollars an hour of a machine with these labels; None: there is no price of it."""
    tariff = tariff_of(Cost(), Workers())
    rows = tariff.rows.get(labels.get(INSTANCE_LABEL, ""))
    if not rows:
        return None
    try:
        rate = replace(tariff, cpus=rows[0].cpus, gpus=rows[0].gpus).rate(labels)
    except ConfigError:
        return None  # not in this region, or not sold that way
    return rate.per_hour if rate is not None else None


def sizes_of(labels: Mapping[str, str]) -> tuple[float, float] | None:
    """(CPUs, GPUs) of the machine that the labels name, where the table has it."""
    rows = tariff_of(Cost(), Workers()).rows.get(labels.get(INSTANCE_LABEL, ""))
    return (rows[0].cpus, rows[0].gpus) if rows else None
