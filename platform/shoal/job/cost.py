"""What a job is told about energy and money: how its use of them is estimated, and at which price it is booked.

None of it changes the result, and so none of it counts into the job's digest: a run can be resumed at another price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.errors import ConfigError
from shoal.job.checks import at_least, choice, positive

WATTS_PER_CORE = 3.5
"""Of a busy virtual core, averaged over the servers of a cloud: `MAX_WATTS_AVG` for AWS of Cloud Carbon Footprint
(github.com/cloud-carbon-footprint/cloud-carbon-footprint, packages/aws, from SPECpower results). Single processors lie
between 1.7 and 8.6; measured against wall meters such estimates are up to 40 % off (arXiv 2509.22092)."""
CARBON_G_PER_KWH = 475.0
"""World average of electricity, grams of CO2 equivalent per kWh: IEA, Global Energy & CO2 Status Report 2019, which is
also what codecarbon takes where it knows no country."""
SOURCES = {"carbon_g_per_kwh": "world average, IEA 2019", "watts_per_core": "Cloud Carbon Footprint, AWS average"}
"""Where the defaults come from, in a few words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Prices and factors. Without a price the record says nothing about money."""

    per_hour: float | None = None
    """Dollars for an hour of one worker, wherever it is."""
    instance: str | None = None
    """Type of machine whose price is taken, for example `g5.xlarge`; each worker pays for its share of one. A node
    that has the label `instance-type` says it for itself."""
    region: str | None = None
    """Default: that of the node's label `ray.io/availability-region`, else the first one in the table."""
    market: Literal["on-demand", "spot"] = "on-demand"
    """A node that has the label `ray.io/market-type` says it for itself."""
    prices: str | None = None
    """A table of prices (CSV) with SkyPilot's columns. Default: the built-in one, of a dozen rows."""
    watts_per_core: float = WATTS_PER_CORE
    """Of a busy core, for the estimate that is made where no meter can be read."""
    carbon_g_per_kwh: float = CARBON_G_PER_KWH
    """Grams of CO2 equivalent for a kWh of the electricity that is used."""

    def __post_init__(self) -> None:
        if self.per_hour is not None:
            positive("cost.per_hour", self.per_hour)
        if self.per_hour is not None and self.instance is not None:
            raise ConfigError(
                f"cost.per_hour={self.per_hour:g} and cost.instance={self.instance} are both set; one price counts: "
                f"set one of them to none"
            )
        choice("cost.market", self.market, ("on-demand", "spot"))
        positive("cost.watts_per_core", self.watts_per_core)
        at_least("cost.carbon_g_per_kwh", self.carbon_g_per_kwh, 0)

    @property
    def priced(self) -> bool:
        """Whether every worker has a price, whatever its node says of itself."""
        return self.per_hour is not None or self.instance is not None
