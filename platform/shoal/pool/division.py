"""Who gets how many of a pool's workers: pure functions of what is there, what is claimed and what is held.

A move costs the run that gives a view change, so workers move for two reasons only: a run that could not start
otherwise needs them, or they are free.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Claim:
    """What one run asks of a pool."""

    run: str
    sizes: tuple[int, ...]
    """Numbers of workers that it can make use of, ascending: the fewest that it can run with first."""
    since: int = 0
    """Who came earlier has the smaller one."""
    weight: float = 1.0
    """How much it deserves: what is spread is spread in proportion to this."""
    begun: bool = False
    """Whether it has had the fewest that it needs: its workers may hold all that it has learned."""

    def __post_init__(self) -> None:
        if not self.sizes or self.sizes[0] < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ConfigError(f"a claim needs ascending numbers of workers from 1 on, got {self.sizes}")
        if not self.weight > 0:
            raise ConfigError(f"a claim needs a weight above 0, got {self.weight}")

    @property
    def low(self) -> int:
        """The fewest workers that it can run with."""
        return self.sizes[0]

    def fitting(self, count: int) -> int:
        """The largest size that `count` workers are enough for; 0: there is none."""
        return max((size for size in self.sizes if size <= count), default=0)

    def above(self, count: int) -> int | None:
        """The next larger size."""
        return next((size for size in self.sizes if size > count), None)


@dataclass(frozen=True, slots=True)
class Share:
    """What a run is allotted."""

    count: int
    reason: str


def useful_sizes(low: int, high: int, virtual_shards: int) -> tuple[int, ...]:
    """The numbers of workers in [low, high] that make a step shorter than the next smaller one of them does.

    The slowest member decides about a step, and it has ceil(virtual_shards / n) of them.
    """
    sizes = [low]
    for count in range(low + 1, min(high, virtual_shards) + 1):
        if -(-virtual_shards // count) < -(-virtual_shards // sizes[-1]):
            sizes.append(count)
    return tuple(sizes)


def divide(total: int, claims: Sequence[Claim], held: Mapping[str, int]) -> dict[str, Share]:
    """Divide `total` workers, those that are lent and those that are free; `held`: how many each run has now.

    Every run gets the fewest that it needs, those that have begun first, then in order of arrival; one that finds too
    few left waits, and so do all that came after it and have not begun: nobody is overtaken for ever. One that has
    begun keeps what it has meanwhile. Who has more than it needs keeps it, but for what the others lack. What is free
    is spread evenly by weight.
    """
    seated, waiting = _seat(total, sorted(claims, key=lambda c: c.since), held)
    counts = {c.run: max(c.low, c.fitting(held.get(c.run, 0))) for c in seated}
    total -= sum(share.count for share in waiting.values())
    _shrink(counts, seated, sum(counts.values()) - total)
    _spread(counts, seated, total - sum(counts.values()), held)
    starving = [c.run for c in seated if held.get(c.run, 0) < c.low]
    shares = {c.run: Share(counts[c.run], _reason(c, counts[c.run], held.get(c.run, 0), starving)) for c in seated}
    return shares | waiting


def next_to_get(claims: Iterable[Claim], shares: Mapping[str, Share], held: Mapping[str, int]) -> list[Claim]:
    """Who gets the next worker that is free, in order: first who cannot run yet, then who has least for its weight."""
    short = [c for c in claims if held.get(c.run, 0) < shares[c.run].count]

    def rank(claim: Claim) -> tuple[bool, float, int]:
        has = held.get(claim.run, 0)
        return has >= claim.low, 0.0 if has < claim.low else has / claim.weight, claim.since

    return sorted(short, key=rank)


@dataclass(frozen=True, slots=True)
class Provision:
    """How many processes a pool is to have, and what makes way for them."""

    processes: int
    discard: Mapping[Hashable, int]
    """So many of those at rest, by kind."""


def provide(
    *,
    most: int,
    warm: Mapping[Any, int],
    lacking: Mapping[Any, int],
    there: Mapping[Any, int],
    coming: Mapping[Any, int],
    idle: Mapping[Any, int],
) -> Provision:
    """How many processes to have, never more than `most`. All arguments: how many of each kind.

    `warm`: are to be kept, as far as there is room. `lacking`: are allotted to runs that do not have them; those that
    are `coming` to rest will do. Where there is no room for these, `idle` ones of kinds that nobody lacks make way.
    `there`: exist, whatever they do.
    """
    missing = {kind: max(0, count - coming.get(kind, 0)) for kind, count in lacking.items()}
    total = sum(there.values())
    spare = {kind: max(0, count - there.get(kind, 0) - missing.get(kind, 0)) for kind, count in warm.items()}
    over = total + sum(missing.values()) - most
    discard: dict[Hashable, int] = {}
    for kind, count in idle.items():
        if over > 0 and not lacking.get(kind):
            discard[kind] = min(count, over)
            over -= discard[kind]
    return Provision(min(most, total + sum(missing.values()) + sum(spare.values())), discard)


def _seat(total: int, claims: Sequence[Claim], held: Mapping[str, int]) -> tuple[list[Claim], dict[str, Share]]:
    """Who can run, and who waits for what."""
    short = {c.run for c in claims if held.get(c.run, 0) < c.low}
    kept = {c.run: held.get(c.run, 0) for c in claims if c.begun and c.run in short}
    running = [c for c in claims if c.run not in short]
    hurt = [c for c in claims if c.run in kept]
    new = [c for c in claims if c not in running and c not in hurt]
    seated: list[Claim] = []
    waiting: dict[str, Share] = {}
    room = total - sum(kept.values())
    for claim in (*running, *hurt, *new):
        has = kept.get(claim.run, 0)
        if waiting and claim in new:
            waiting[claim.run] = Share(0, f"waits behind {next(iter(waiting))}, which came first")
        elif claim.low > room + has:
            why = f"needs {claim.low} workers, and the others leave {max(0, room + has)} of {total}"
            waiting[claim.run] = Share(has, why)
        else:
            seated.append(claim)
            room -= claim.low - has
    return seated, waiting


def _shrink(counts: dict[str, int], claims: Sequence[Claim], missing: int) -> None:
    """Take `missing` workers from those that have most for their weight, the latest first."""
    while missing > 0:
        rich = max((c for c in claims if counts[c.run] > c.low), key=lambda c: (counts[c.run] / c.weight, c.since))
        less = rich.fitting(counts[rich.run] - 1)
        missing -= counts[rich.run] - less
        counts[rich.run] = less


def _spread(counts: dict[str, int], claims: Sequence[Claim], free: int, held: Mapping[str, int]) -> None:
    """Give what is free to who has least for its weight; first to who has it still and would have to give it up."""
    while True:
        steps = {c.run: above - counts[c.run] for c in claims if (above := c.above(counts[c.run])) is not None}
        able = [c for c in claims if steps.get(c.run, free + 1) <= free]
        if not able:
            return

        def rank(claim: Claim) -> tuple[bool, float, float, int]:
            run, count = claim.run, counts[claim.run]
            return count + steps[run] > held.get(run, 0), count / claim.weight, -claim.weight, claim.since  # noqa: B023

        poor = min(able, key=rank)
        counts[poor.run] += steps[poor.run]
        free -= steps[poor.run]


def _reason(claim: Claim, count: int, has: int, starving: Sequence[str]) -> str:
    if has < claim.low:
        return f"{count} to start with"
    if count < has:
        others = ", ".join(r for r in starving if r != claim.run)
        return f"gives {has - count} back" + (f" for {others}" if others else "; more would not make it faster")
    return f"{count - has} more are free" if count > has else "keeps what it has"
