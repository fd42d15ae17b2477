"""Prices: which row is a worker's, and which part of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import ConfigError
from shoal.job import Cost, Workers
from shoal.tracking.prices import Rate, tariff_of

pytestmark = pytest.mark.unit

HEAD = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch"
)
TABLE = f"""{HEAD}
big,H100,8.0,64.0,512.0,"{{'Gpus': [{{'Name': 'H100', 'Count': 8}}]}}",32.0,8.0,us-east-1,use1-az1,x86_64
big,H100,8.0,64.0,512.0,,32.0,9.0,us-east-1,use1-az2,x86_64
big,H100,8.0,64.0,512.0,,40.0,,eu-west-1,euw1-az1,x86_64
small,,,4.0,16.0,,0.2,0.05,us-east-1,use1-az1,x86_64
"""


def rate(cost: Cost, workers: Workers | None = None, **labels: str) -> Rate:
    names = {"instance": "instance-type", "region": "ray.io/availability-region", "zone": "ray.io/availability-zone"}
    names["market"] = "ray.io/market-type"
    found = tariff_of(cost, workers or Workers()).rate({names[k]: v for k, v in labels.items()})
    assert found is not None
    return found


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "vms.csv"
    path.write_text(TABLE)
    return str(path)


def test_a_price_per_hour_is_a_workers_wherever_it_is() -> None:
    assert rate(Cost(per_hour=1.5), instance="g5.xlarge").per_hour == 1.5


def test_without_a_price_there_is_none() -> None:
    assert tariff_of(Cost(), Workers()).rate({}) is None


def test_a_worker_pays_for_its_share_of_the_machine(table: str) -> None:
    cost = Cost(instance="big", prices=table)
    assert rate(cost, Workers(cpus=8, gpus=1)).per_hour == 4.0
    assert rate(cost, Workers(cpus=32, gpus=1)).per_hour == 16.0  # nobody else can use what it leaves of the CPUs
    assert rate(Cost(instance="small", prices=table), Workers(cpus=4)).per_hour == 0.2


def test_the_nodes_labels_say_machine_region_and_market(table: str) -> None:
    cost, worker = Cost(instance="small", prices=table), Workers(cpus=1, gpus=8)
    with pytest.raises(ConfigError, match=r"workers\.gpus=8 does not fit on small, which has 4 CPUs and 0 GPUs"):
        tariff_of(cost, worker)
    cost = Cost(prices=table)
    assert rate(cost, worker, instance="big").per_hour == 32.0
    assert rate(cost, worker, instance="big", region="eu-west-1").per_hour == 40.0
    spot = rate(cost, worker, instance="big", market="spot", region="us-east-1", zone="use1-az2")
    assert spot.per_hour == 9.0
    assert spot.said.startswith("big us-east-1 spot $9/h (file of 20")
    with pytest.raises(ConfigError, match=r"big has no spot price in eu-west-1"):
        rate(cost, worker, instance="big", market="spot", region="eu-west-1")


def test_the_built_in_table_has_dated_prices() -> None:
    found = rate(Cost(instance="g5.xlarge", market="spot"), Workers(cpus=1, gpus=1))
    assert (found.per_hour, found.said) == (0.4886, "g5.xlarge us-east-1 spot $0.4886/h (2026-11-20)")


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (Cost(instance="g5.xlrge"), r"no price of g5\.xlrge among the 20 machines.*did you mean \"g5\.xlarge\""),
        (Cost(instance="g5.xlarge", region="us-est-1"), r"in the region us-est-1; did you mean \"us-east-1\""),
        (Cost(instance="p5.4xlarge", market="spot"), r"p5\.4xlarge has no spot price"),
        (Cost(prices="nowhere.csv"), r"cost\.prices=nowhere\.csv cannot be read: .*No such file"),
    ],
)
def test_what_has_no_price_is_refused(cost: Cost, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tariff_of(cost, Workers(cpus=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("InstanceType,Price\na,1\n", r"lacks the columns AcceleratorCount, vCPUs, SpotPrice, Region"),
        (TABLE.replace("0.2,", "cheap,"), r"vms\.csv, line 5: could not convert string to float: 'cheap'"),
    ],
)
def test_a_bad_table_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "vms.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        tariff_of(Cost(prices=str(path)), Workers())
