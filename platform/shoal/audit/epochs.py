"""Epochs: which are complete, what is still to come of the last one, and that the order permutes each. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from shoal.audit.chain import Chain, Fault
from shoal.data.order import Order

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Epochs:
    """How a run's samples, positions [begin, end) of the endless stream, lie in epochs. Epochs count from 1."""

    samples: int
    """Of one epoch."""
    begin: int
    end: int
    complete: int
    """Whole epochs of which every sample was used exactly once."""
    broken: dict[int, tuple[list[Range], list[Range]]]
    """epoch -> ranges of its positions that were never used, and that were used more than once."""

    @property
    def current(self) -> int:
        """The epoch that the next sample belongs to."""
        return self.end // self.samples + 1

    @property
    def to_come(self) -> Range:
        """Positions in the current epoch that are still to come."""
        return self.end % self.samples, self.samples

    @property
    def inherited(self) -> Range | None:
        """Positions of the first epoch that another run used, from whose checkpoint this one began; None: none."""
        return (0, self.begin % self.samples) if self.begin % self.samples else None

    def faults(self) -> Iterator[Fault]:
        for epoch, (missing, doubled) in sorted(self.broken.items()):
            said = [_said("never used", missing), _said("used more than once", doubled)]
            yield Fault("epoch", f"epoch {epoch}: positions {' and '.join(s for s in said if s)}")


def epochs_of(chain: Chain) -> Epochs | None:
    """The epochs of a run; None if their size is not known, or nothing was committed."""
    size = chain.epoch_samples
    if not size or chain.last < chain.first:
        return None
    begin, end = chain.range_of(chain.first)[0], chain.range_of(chain.last)[1]
    missing, doubled = chain.coverage()
    broken: dict[int, tuple[list[Range], list[Range]]] = {}
    for which, found in enumerate((missing, doubled)):
        for epoch, part in _by_epoch(found, size):
            broken.setdefault(epoch, ([], []))[which].append(part)
    whole = range(begin // size + 1, end // size + 1)
    return Epochs(size, begin, end, sum(e not in broken for e in whole), broken)


def _by_epoch(ranges: Iterable[Range], size: int) -> Iterator[tuple[int, Range]]:
    for low, high in ranges:
        while low < high:
            epoch = low // size
            stop = min(high, (epoch + 1) * size)
            yield epoch + 1, (low - epoch * size, stop - epoch * size)
            low = stop


def check_order(order: Order, epochs: Iterable[int]) -> list[Fault]:
    """Whether the order gives every row of every row group exactly once in each of these epochs (counted from 1).

    O(samples log samples): the permutation of each window is made and checked.
    """
    faults = []
    rows = np.asarray(order.group_rows, dtype=np.int64)
    for epoch in epochs:
        base, at = (epoch - 1) * order.samples, (epoch - 1) * order.samples
        used = np.zeros(len(rows), dtype=np.int64)
        wrong = ""
        for window in order.windows(base, base + order.samples):
            groups = list(window.groups)
            np.add.at(used, groups, 1)
            if window.start != at or window.samples != int(rows[groups].sum()):
                wrong = wrong or f"window {window.index} does not begin where the one before it ends"
            if not _permutes(window.permutation(), window.samples):
                wrong = wrong or f"window {window.index} is no permutation of its samples"
            at = window.stop
        if at != base + order.samples or (used != 1).any():
            wrong = wrong or f"row groups {np.flatnonzero(used != 1)[:5].tolist()} are not used exactly once"
        if wrong:
            faults.append(Fault("epoch", f"the order of epoch {epoch} is none: {wrong}"))
    return faults


def _permutes(order: np.ndarray | None, count: int) -> bool:
    if order is None:
        return True
    seen = np.zeros(count, dtype=bool)
    seen[order] = True
    return len(order) == count and bool(seen.all())


def _said(what: str, ranges: list[Range]) -> str:
    return f"{what} {', '.join(map(shown, ranges[:5]))}{', ...' if len(ranges) > 5 else ''}" if ranges else ""


def shown(positions: Range) -> str:
    """`[0, 64)`."""
    return f"[{positions[0]}, {positions[1]})"
