"""What a run trains on: one source or a mixture of several, and the order in which their samples come."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import ceil
from typing import Any

from shoal.data.catalog import Catalog
from shoal.data.columns import Column
from shoal.data.curriculum import ranked
from shoal.data.mixture import Mixture, by_size
from shoal.data.order import Order, derive
from shoal.errors import DataError
from shoal.job.spec import Data, Job
from shoal.positions import Positions

_SOURCE = 5  # what a key is for


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The sources of a run, in the job's order. One that stands alone has no name. Survives pickling."""

    names: tuple[str, ...]
    catalogs: tuple[Catalog, ...]

    @classmethod
    def of(cls, catalog: Catalog) -> TrainingData:
        """A single source."""
        return cls(("",), (catalog,))

    @property
    def uri(self) -> str:
        """For people."""
        return " + ".join(c.uri for c in self.catalogs)

    @property
    def samples(self) -> int:
        """In all sources together, each once."""
        return sum(c.samples for c in self.catalogs)

    @property
    def digest(self) -> str:
        """SHA-256 of the content (and of the sources' names, if there are several)."""
        if len(self.catalogs) == 1:
            return self.catalogs[0].digest
        parts = [[name, c.digest] for name, c in zip(self.names, self.catalogs, strict=True)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those that training needs; the same in all sources (`check`)."""
        return self.catalogs[0].columns

    @property
    def metadata(self) -> dict[str, Any]:
        """What all sources say of themselves alike."""
        first, *others = (c.metadata for c in self.catalogs)
        return {k: v for k, v in first.items() if all(o.get(k) == v for o in others)}

    @property
    def local(self) -> bool:
        """True if only machines that share this machine's disk can read all of it."""
        return any(c.local for c in self.catalogs)

    def check(self) -> None:
        """Raise DataError unless the sources' samples can stand in one batch."""
        first = self.catalogs[0]
        for name, other in zip(self.names[1:], self.catalogs[1:], strict=True):
            if other.columns != first.columns:
                raise DataError(
                    f"the sources {self.names[0]!r} and {name!r} cannot be mixed: {_said(first)} in {first.uri}, but "
                    f"{_said(other)} in {other.uri}; prepare them in the same way"
                )

    def mixture(self, data: Data, *, seed: int, block: int, total: int) -> Mixture | None:
        """Which source each position is of; None: there is only one. `total`: positions in the whole budget."""
        if len(self.catalogs) == 1:
            return None
        weights = tuple(s.weight for s in data.sources)
        if data.temperature is not None:
            weights = by_size(weights, [c.samples for c in self.catalogs], data.temperature)
        return Mixture(weights=weights, block=block, total=total, seed=seed)

    def repeats(self, mixture: Mixture, positions: Positions) -> tuple[str, int, int] | None:
        """(source, step, samples of it in that step) if a step takes more samples of a source than it has.

        A source's share is a ratio of linear functions of progress between the points that its weights name, so it is
        largest at one of them, and in steps of one size at one of those or at the ends.
        """
        last = positions.total - 1
        points = {p for weight in mixture.weights if isinstance(weight, tuple) for p, _ in weight}
        points |= {1.0} if points else set()  # where no weight changes, the first step of a size stands for all
        firsts = [first for first, _ in positions.spans if first <= positions.steps]
        looked = {*firsts, *(first - 1 for first in firsts[1:])}
        for step in sorted(looked | {positions.step_of(min(last, int(p * last))) for p in (0.0, *points)}):
            for name, catalog, (a, b) in zip(
                self.names, self.catalogs, mixture.ranges(*positions.of(step)), strict=True
            ):
                if b - a > catalog.samples:
                    return name, step, b - a
        return None

    def ordered(self, job: Job, positions: Positions) -> tuple[Mixture | None, tuple[Order, ...]]:
        """The mixture and each source's own order in a run of `job` whose steps read `positions`."""
        total = positions.total
        mixture = self.mixture(job.data, seed=job.seed, block=job.batch.size, total=total)
        return mixture, self.orders(job.data, mixture, seed=job.seed, total=total)

    def orders(self, data: Data, mixture: Mixture | None, *, seed: int, total: int) -> tuple[Order, ...]:
        """Each source's own order. With a curriculum this reads one column of all the data."""
        # How far each source goes is a question of the curriculum alone.
        paced = mixture if data.curriculum is not None else None
        totals = paced.used(total) if paced is not None else [total] * len(self.catalogs)
        seeds = [seed] if mixture is None else [derive(seed, _SOURCE, i) for i in range(len(totals))]
        return tuple(
            catalog.order(
                seed=own,
                shuffle=data.shuffle,
                window=data.window,
                replacement=data.replacement,
                pacing=ranked(catalog, data.curriculum, all_of_it, ceil(data.cpus)) if data.curriculum else None,
            )
            for catalog, own, all_of_it in zip(self.catalogs, seeds, totals, strict=True)
        )


def order_digest(data: Data, *, block: int, total: int) -> str:
    """Over what decides which samples are trained on when, besides seed, shuffle and window; "" where none of it is
    asked for."""
    if not (data.replacement or data.curriculum or data.sources or data.selection):
        return ""
    curriculum = None if data.curriculum is None else repr(data.curriculum)
    mixed = [(s.name, s.weight) for s in data.sources]
    # Only what changes with progress depends on the length of the run.
    paced = curriculum is not None or any(isinstance(s.weight, tuple) for s in data.sources)
    asked = [data.replacement, curriculum, mixed, data.temperature, block if mixed else 0, total if paced else 0]
    if data.selection is not None:  # how long it lasts decides what every later step reads
        asked += [repr(data.selection), block, total]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _said(catalog: Catalog) -> str:
    return ", ".join(f"{c.name} is {c.dtype} {list(c.shape)}" for c in catalog.columns)
