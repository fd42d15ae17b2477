"""Which positions of the endless stream of samples each step of a run reads: a pure value, fixed by the job.

Steps count from 1, positions from 0. Steps follow each other without a gap; how many positions a step reads may change
from one stretch of steps to the next, but all steps of a run are known before it begins. Nothing depends on workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions of all steps of a run."""

    spans: tuple[tuple[int, int], ...]
    """(first step, positions that each step from it on reads), in rising order; the first one begins with step 1. The
    last one goes on beyond the run's last step, so that any step can be asked for."""
    steps: int
    """Steps of the whole run."""

    def __post_init__(self) -> None:
        firsts = [first for first, _ in self.spans]
        if firsts[:1] != [1] or any(a >= b for a, b in pairwise(firsts)) or min(n for _, n in self.spans) < 1:
            raise ValueError(f"spans {self.spans} must begin with step 1, rise, and read at least one position a step")
        if self.steps < 1:
            raise ValueError(f"a run of {self.steps} steps reads nothing; it needs at least one")

    @classmethod
    def even(cls, per_step: int, steps: int) -> Positions:
        """`per_step` positions in each of `steps` steps."""
        return cls(((1, per_step),), steps)

    @classmethod
    def from_json(cls, spans: Sequence[Sequence[int]], steps: int) -> Positions:
        """From `spans` as JSON keeps them. Raises ValueError."""
        return cls(tuple((int(first), int(count)) for first, count in spans), steps)

    @property
    def total(self) -> int:
        """Positions that the whole run reads."""
        return self.before(self.steps)

    @property
    def most(self) -> int:
        """The most positions that one step of the run reads."""
        return max(count for first, count in self.spans if first <= self.steps)

    def per_step(self, step: int) -> int:
        """How many positions `step` (from 1) reads."""
        return next(count for first, count in reversed(self.spans) if first <= step)

    def before(self, step: int) -> int:
        """Where the stream stands after `step` steps (0: at its beginning)."""
        ends = [first - 1 for first, _ in self.spans[1:]]
        return sum(
            (min(step, end) - first + 1) * count
            for (first, count), end in zip(self.spans, [*ends, step], strict=True)
            if first <= step
        )

    def of(self, step: int) -> tuple[int, int]:
        """(start, stop): the positions that `step` (from 1) reads."""
        return self.before(step - 1), self.before(step)

    def step_of(self, position: int) -> int:
        """The step that reads `position`."""
        first, count = next(span for span in reversed(self.spans) if self.before(span[0] - 1) <= position)
        return first + (position - self.before(first - 1)) // count
