"""What a run remembers of the others that ask it to give way, and what it then does. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.capacity.precedence import Claim, Way, heed

HOLD_S = 8.0
"""For how long a run gives way after it was asked the last time: some rounds of asking."""


@dataclass(frozen=True, slots=True)
class _Ask:
    claim: Claim
    way: Way
    until: float


class Asks:
    """Those of one run, by who asked."""

    def __init__(self) -> None:
        self._asks: dict[str, _Ask] = {}

    def hear(self, own: Claim, asker: Claim, way: Way, now: float) -> None:
        """Another run asks, once more or for the first time; only its last word counts. What it may not ask for is
        not heard."""
        if asker.run != own.run and asker.priority >= own.priority and asker.lacks:
            self._asks[asker.run] = _Ask(asker, way, now + HOLD_S)

    def live(self, now: float) -> bool:
        """Whether anybody asks: then this run asks the cluster for nothing, and who was to leave goes on leaving."""
        self._asks = {run: ask for run, ask in self._asks.items() if ask.until > now}
        return bool(self._asks)

    def going(self, own: Claim, now: float) -> dict[str, Claim]:
        """Workers that are to leave, and for whom."""
        if not self.live(now):
            return {}
        return {w: ask.claim for ask in self._asks.values() for w in heed(own, ask.claim, ask.way.workers)}
