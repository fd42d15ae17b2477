"""How many samples each step reads and trains on. Pure.

Of most jobs that is known before the run begins. Where the batch grows by what is measured, or along a budget that is
used up by the doing, it is decided when a step is leased, once, and written down: the same after a loss, a restart of
the coordinator or a resume, and in a step that is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shoal.optim.noise import Measured, pooled_scale
from shoal.positions import Positions


@dataclass(frozen=True, slots=True)
class Decision:
    """From `step` on, batches have `size` samples."""

    step: int
    size: int
    why: str


class Sizes:
    """All sizes are known."""

    def __init__(self, reads: Positions, trains: Positions | None = None) -> None:
        """`trains`: how many samples each step trains on, where that is less than it reads."""
        self._reads, self._trains = reads, trains or reads

    @property
    def positions(self) -> Positions:
        """The positions of the steps, as far as they are settled."""
        return self._reads

    def batch(self, step: int) -> int:
        """Samples that `step` (from 1) trains on."""
        return self._trains.per_step(step)

    @property
    def known(self) -> bool:
        """Whether all of them are settled from the beginning."""
        return True

    def settle(self, step: int, progress: float) -> bool:
        """Decide about `step`, the first one that is not settled, which ends at `progress`; False: not yet possible."""
        return True

    def awaits(self, step: int) -> bool:
        """Whether later steps can be settled only when `step` is committed."""
        return False

    def note(self, step: int, found: Measured | None) -> None:
        """`step` is committed, and was measured to be so."""

    def decisions(self) -> tuple[Decision, ...]:
        """What was decided since the last call, to be written down before anybody acts on it."""
        return ()


class GrowingSizes(Sizes):
    """Sizes that are decided on the way; every step reads what it trains on."""

    def __init__(self, size: int, steps: int, decided: Iterable[tuple[int, int]] = ()) -> None:
        """`size`: of the first batch. `steps`: of the whole run, or more. `decided`: (step, size from it on) of
        decisions that an earlier life of the coordinator has written down."""
        super().__init__(Positions.even(size, steps))
        self._steps, self._decided = steps, {1: size}
        self._fresh: list[Decision] = []
        for step, found in decided:
            self._keep(step, found)
        self._span()

    @property
    def known(self) -> bool:
        """False."""
        return False

    def decisions(self) -> tuple[Decision, ...]:
        """What was decided since the last call."""
        fresh, self._fresh = tuple(self._fresh), []
        return fresh

    def _decide(self, step: int, size: int, why: str) -> None:
        self._fresh.append(Decision(step, size, why))
        self._keep(step, size)
        self._span()

    def _keep(self, step: int, size: int) -> None:
        self._decided[step] = size

    def _span(self) -> None:
        spans: list[tuple[int, int]] = []
        for step, size in sorted(self._decided.items()):
            if not spans or spans[-1][1] != size:
                spans.append((step, size))
        self._reads = self._trains = Positions(tuple(spans), self._steps)


class MilestoneSizes(GrowingSizes):
    """Sizes along a budget that is used up by the doing."""

    def __init__(
        self, size_at: Callable[[float], int], size: int, steps: int, decided: Iterable[tuple[int, int]] = ()
    ) -> None:
        """`size_at`: the size of the step that ends at a progress."""
        super().__init__(size, steps, decided)
        self._size_at = size_at

    def settle(self, step: int, progress: float) -> bool:
        """Decide about `step`, which ends at `progress`."""
        size = self._size_at(progress)
        if step > max(self._decided) and size > self.batch(step):
            self._decide(step, size, f"progress {progress:.4g}")
        return True


class NoiseSizes(GrowingSizes):
    """Sizes by the measured noise scale: that of the steps of block b from what was measured in block b - 2."""

    def __init__(
        self, rule: NoiseRule, size: int, steps: int, decided: Iterable[tuple[int, int]] = (), *, after: int = 0
    ) -> None:
        """`after`: the last step that is committed already; what it read, `decided` says."""
        super().__init__(size, steps, decided)
        self._rule, self._committed, self._origin = rule, after, after
        self._measured: dict[int, Measured] = {}

    def settle(self, step: int, progress: float) -> bool:
        """Decide about `step`; False: what was measured in the last block but one is not known yet."""
        every = self._rule.every
        block = (step - 1) // every
        first, seen = block * every + 1, (block - 1) * every
        if block < 2 or first <= self._origin or first in self._decided:
            return True
        if self._committed < seen:
            return False
        asked = (self._measured.pop(s, None) for s in range(seen - every + 1, seen + 1))
        scale = pooled_scale(m for m in asked if m is not None)
        self._decide(first, *self._rule.next_size(self.batch(first), scale))
        return True

    def awaits(self, step: int) -> bool:
        """The end of every block."""
        return step % self._rule.every == 0

    def note(self, step: int, found: Measured | None) -> None:
        """`step` is committed. A step that was rolled back may come again."""
        self._committed = step
        self._measured.pop(step, None)
        decides = ((step - 1) // self._rule.every + 2) * self._rule.every + 1
        if found is not None and decides not in self._decided:
            self._measured[step] = found


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseRule:
    """`shoal.job.growth.ByNoise`, as numbers."""

    every: int
    most: int
    factor: int
    threshold: float

    def next_size(self, size: int, scale: float | None) -> tuple[int, str]:
        """(the size after `size`, why), where the noise scale is `scale`; None: nothing was measured."""
        grown = size * self.factor
        if scale is None:
            return size, "the noise scale was not measured"
        if grown > self.most:
            return size, f"noise scale {scale:.4g}; {grown} would be more than ByNoise.most={self.most}"
        limit = self.threshold * scale
        if grown <= limit:
            return grown, f"noise scale {scale:.4g}: {grown} is at most {self.threshold:g} times that"
        return size, f"noise scale {scale:.4g}: {grown} would be more than {self.threshold:g} times that"
