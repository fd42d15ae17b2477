"""Listening on one node: which provider it is, and the first notice that counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from shoal.errors import ConfigError
from shoal.notices.aws import Aws
from shoal.notices.azure import Azure
from shoal.notices.endpoint import Endpoint
from shoal.notices.gcp import Gcp
from shoal.notices.notice import Ask, Notice, Provider

PROVIDERS: Mapping[str, Callable[[], Provider]] = {"aws": Aws, "gcp": Gcp, "azure": Azure}
INTERVAL_S = 2.0
"""Between two looks. AWS recommends five seconds, Azure one; of two minutes or of thirty seconds little may be lost."""
QUIET_S = 30.0
"""A service that has not answered for so long is spoken of."""
ATTEMPTS = 5
"""Looks for the provider; a machine that boots may be quicker than its metadata service."""

Say = Callable[[str], None]


async def find_provider(endpoint: Endpoint, name: str = "auto", *, interval_s: float = INTERVAL_S) -> Provider:
    """The provider of that name; `auto`: the one whose service answers. Raises ConfigError if none does."""
    if name != "auto":
        return PROVIDERS[name]()
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(interval_s)
        known = [make() for make in PROVIDERS.values()]
        here = await asyncio.gather(*(_is_here(p, endpoint.ask) for p in known))
        found: Sequence[Provider] = [p for p, yes in zip(known, here, strict=True) if yes]
        if found:
            return found[0]
    raise ConfigError(
        f"no metadata service of {', '.join(p().name for p in PROVIDERS.values())} answers at {endpoint.base}: this "
        f"node is on none of these clouds, or a container's network hides it (on AWS raise the instance's metadata hop "
        f"limit to 2, or use the host's network). If you know which it is, name it with --provider"
    )


async def _is_here(provider: Provider, ask: Ask) -> bool:
    try:
        return await provider.is_here(ask)
    except (OSError, ValueError):
        return False


async def next_notice(
    provider: Provider,
    ask: Ask,
    say: Say,
    *,
    interval_s: float = INTERVAL_S,
    recommendations: bool = False,
    now: Callable[[], float] = time.time,
) -> Notice:
    """Wait for the first notice; `recommendations`: also for one that is only recommended.

    A service that hangs, is down or talks nonsense ends nothing: it is asked again, and `say` hears of it once until it
    answers again.
    """
    silent_since: float | None = None
    told = recommended = False
    while True:
        begun = time.monotonic()
        try:
            notice = await provider.look(ask, now())
        except (OSError, ValueError) as error:
            silent_since = begun if silent_since is None else silent_since
            if not told and (isinstance(error, ValueError) or time.monotonic() - silent_since >= QUIET_S):
                told = True
                say(
                    f"{provider.name}'s metadata service cannot be used ({error}); it is asked again every "
                    f"{interval_s:g}s. Until it answers, this node may be taken without notice"
                )
        else:
            if told:
                say(f"{provider.name}'s metadata service answers again")
            silent_since, told = None, False
            if notice is not None and (notice.certain or recommendations):
                return notice
            if notice is not None and not recommended:
                recommended = True
                say(f"{notice.what}: not followed; with --rebalance this node would be drained")
        await asyncio.sleep(max(0.0, interval_s - (time.monotonic() - begun)))
