"""What a worker costs: a table of prices, and which of its rows is a worker's.

A table has the columns of SkyPilot's catalogs (InstanceType, AcceleratorName, AcceleratorCount, vCPUs, MemoryGiB,
GpuInfo, Price, SpotPrice, Region, AvailabilityZone, Arch), so that one of its files can be taken as it is, and may have
a column Date. The built-in rows were read on their Date from github.com/skypilot-org/skypilot-catalog, catalogs/v8:
aws/vms.csv at e385a0d348ed (m5.xlarge: at 00148f2af367), lambda/vms.csv at 0f4070387edc, gcp/vms.csv at 8427bbff988a;
those of Azure from catalogs/v6, azure/vms.csv at 098741e70562.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.errors import ConfigError
from shoal.job.checks import nearest

if TYPE_CHECKING:
    from shoal.job import Cost, Workers

INSTANCE_LABEL = "instance-type"
REGION_LABEL = "ray.io/availability-region"
ZONE_LABEL = "ray.io/availability-zone"
MARKET_LABEL = "ray.io/market-type"
"""Labels of a Ray node; the last three are Ray's own."""

_NEEDED = ("InstanceType", "AcceleratorCount", "vCPUs", "Price", "SpotPrice", "Region")


@dataclass(frozen=True, slots=True)
class Row:
    """What one type of machine costs in one place. Prices: dollars an hour; None: not sold that way."""

    instance: str
    region: str
    zone: str
    cpus: float
    gpus: float
    on_demand: float | None
    spot: float | None
    date: str


@dataclass(frozen=True, slots=True)
class Rate:
    """What one worker costs."""

    per_hour: float
    """Dollars."""
    said: str
    """Where that comes from, for people: `g5.xlarge us-east-1 spot $0.4886/h (2026-11-20), half of it`."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """The prices of a run's workers, wherever they come to be."""

    cost: Cost
    cpus: float
    gpus: float
    """What each worker reserves."""
    rows: Mapping[str, tuple[Row, ...]]
    """By type of machine."""

    def rate(self, labels: Mapping[str, str]) -> Rate | None:
        """The price of a worker on a node with these labels; None: nobody says.

        Raises ConfigError for a machine, region or market without a price, and for a machine that is too small.
        """
        cost = self.cost
        if cost.per_hour is not None:
            return Rate(cost.per_hour, f"${cost.per_hour:g}/h (cost.per_hour)")
        instance = labels.get(INSTANCE_LABEL, cost.instance)
        if instance is None:
            return None
        market = labels.get(MARKET_LABEL, cost.market)
        row = self._row(instance, cost.region or labels.get(REGION_LABEL), labels.get(ZONE_LABEL))
        price = row.spot if market == "spot" else row.on_demand
        if price is None:
            raise ConfigError(f"{row.instance} has no {market} price in {row.region}; set cost.market or cost.per_hour")
        share = self._share(row)
        part = "" if share == 1 else f", {share:.3g} of it"
        dated = f" ({row.date})" if row.date else ""
        return Rate(price * share, f"{row.instance} {row.region} {market} ${price:g}/h{dated}{part}")

    def _row(self, instance: str, region: str | None, zone: str | None) -> Row:
        rows = self.rows.get(instance)
        if not rows:
            raise ConfigError(
                f"there is no price of {instance} among the {len(self.rows)} machines of the table"
                f"{nearest(instance, list(self.rows))}; bring a table that has it (cost.prices), or set cost.per_hour"
            )
        here = [r for r in rows if r.region == region] if region is not None else list(rows)
        if not here:
            known = sorted({r.region for r in rows})
            raise ConfigError(
                f"there is no price of {instance} in the region {region}{nearest(region or '', known)}; the table has "
                f"{', '.join(known)}"
            )
        return next((r for r in here if r.zone == zone), here[0])

    def _share(self, row: Row) -> float:
        """The part of the machine that is a worker's: of its CPUs or of its GPUs, whichever is more."""
        if self.cpus > row.cpus or self.gpus > row.gpus:
            raise ConfigError(
                f"a worker with workers.cpus={self.cpus:g} and workers.gpus={self.gpus:g} does not fit on "
                f"{row.instance}, which has {row.cpus:g} CPUs and {row.gpus:g} GPUs; set cost.instance to what it runs "
                f"on, or cost.per_hour"
            )
        return max(self.cpus / row.cpus, self.gpus / row.gpus if row.gpus else 0.0)


def tariff_of(cost: Cost, workers: Workers) -> Tariff:
    """The prices as the job says them. Raises ConfigError for a table that cannot be read, an instance that it has not
    (with the nearest one), a region or market without a price, and an instance that is smaller than a worker."""
    tariff = Tariff(cost, workers.cpus, workers.gpus, _by_instance(_read(cost.prices)))
    tariff.rate({})
    return tariff


def _by_instance(rows: Iterable[Row]) -> dict[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.instance, []).append(row)
    return {instance: tuple(its) for instance, its in found.items()}


def _read(path: str | None) -> list[Row]:
    if path is None:
        text, date = (resources.files("shoal.tracking") / "assets" / "prices.csv").read_text(), ""
    else:
        try:
            text, changed = Path(path).read_text(), Path(path).stat().st_mtime
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cost.prices={path} cannot be read: {error}; name a CSV file with prices") from None
        date = f"file of {time.strftime('%Y-%m-%d', time.localtime(changed))}"
    lines = csv.DictReader(text.splitlines())
    missing = [name for name in _NEEDED if name not in (lines.fieldnames or ())]
    if missing:
        raise ConfigError(
            f"cost.prices={path} lacks the columns {', '.join(missing)}; it must have those of SkyPilot's catalogs"
        )
    return [_row(line, date, f"cost.prices={path}, line {lines.line_num}") for line in lines]


def _row(line: Mapping[str, str | None], date: str, where: str) -> Row:
    try:
        return Row(
            instance=line["InstanceType"] or "",
            region=line["Region"] or "",
            zone=line.get("AvailabilityZone") or "",
            cpus=float(line["vCPUs"] or 0),
            gpus=float(line["AcceleratorCount"] or 0),
            on_demand=float(line["Price"]) if line["Price"] else None,
            spot=float(line["SpotPrice"]) if line["SpotPrice"] else None,
            date=line.get("Date") or date,
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; prices and counts are numbers, or empty") from None
