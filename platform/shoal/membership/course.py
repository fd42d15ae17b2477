"""What each step of a run reads, and how much of the budget is used when it is done. Pure: no clock of its own.

Of most jobs all of that is known before the run begins. A budget of time or money is used up by the doing: there the
coordinator decides about a step when it leases it, and once. A step that is computed again, after a loss, a resume or
for `shoal verify`, is computed as it was decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from shoal.membership.sizes import Sizes
from shoal.positions import Positions


class Course:
    """The number of steps is known: the run ends with the last one of `positions`."""

    def __init__(self, reads: Positions | Sizes, *, by: Literal["steps", "samples"] = "steps") -> None:
        """`reads`: what each step reads. `by`: what the budget counts."""
        self.sizes = reads if isinstance(reads, Sizes) else Sizes(reads)
        self._by_samples = by == "samples"
        self._settled = 0

    @property
    def positions(self) -> Positions:
        """The positions of the steps, as far as they are decided."""
        return self.sizes.positions

    @property
    def last(self) -> int | None:
        """The run's last step; None: not known yet."""
        return self.positions.steps

    @property
    def expected(self) -> int:
        """The run's last step, as far as it can be foreseen."""
        return self.positions.steps

    def of(self, step: int) -> tuple[int, int]:
        """(start, stop): the positions of the endless stream that `step` (from 1) reads."""
        return self.positions.of(step)

    def batch(self, step: int) -> int:
        """How many samples `step` trains on."""
        return self.sizes.batch(step)

    def awaits(self, step: int) -> bool:
        """Whether steps after `step` can be decided only when it is committed."""
        return self.sizes.awaits(step)

    def progress(self, step: int) -> float:
        """Share of the budget that is used when `step` is done; 0 before the first one, 1 after the last one."""
        if self._by_samples:
            return self.positions.before(step) / self.positions.total
        return step / self.positions.steps

    def decide(self, until: int) -> int:
        """Decide about the steps up to `until`; returns the last step that is decided, `until` at most."""
        until = min(until, self.positions.steps)
        if self.sizes.known:
            return until
        while self._settled < until and self.sizes.settle(self._settled + 1, self.progress(self._settled + 1)):
            self._settled += 1
        return min(until, self._settled)

    def news(self) -> tuple[tuple[int, float], ...]:
        """(step, progress) of what was decided since the last call: to be written down before anybody is told."""
        return ()

    def restore(self, decided: Iterable[tuple[int, float]]) -> None:
        """Take over what an earlier life of the coordinator told the members: (step, progress). Here it is known."""


class ReadCourse(Course):
    """The budget is `wanted` samples, in steps whose sizes are decided on the way: the last step is the first one that
    reaches it."""

    def __init__(self, sizes: Sizes, wanted: int, *, after: int) -> None:
        """`after`: the step after which the run goes on."""
        super().__init__(sizes, by="samples")
        self._wanted = wanted
        self._settled = after

    @property
    def last(self) -> int | None:
        """The run's last step; None: not known yet."""
        return self._settled if self.progress(self._settled) >= 1.0 else None

    @property
    def expected(self) -> int:
        """The run's last step, if the batch stays as large as it is."""
        known, left = self._settled, self._wanted - self.positions.before(self._settled)
        return known + max(0, -(-left // self.batch(max(1, known))))

    def progress(self, step: int) -> float:
        """Share of the budget that is used when `step`, which is decided, is done."""
        return min(1.0, self.positions.before(step) / self._wanted)

    def decide(self, until: int) -> int:
        """Decide about the steps up to `until`; returns the last step that is decided, `until` at most."""
        while self._settled < until and self.last is None and self.sizes.settle(self._settled + 1, 0.0):
            self._settled += 1
        return min(until, self._settled)


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a budget that is used up by the doing stands at one moment, in its own unit."""

    spent: float = 0.0
    step: int = 0
    """The last step that is paid for with that."""
    per_step: float = 0.0
    """What a further one costs; 0: not known yet."""

    def after(self, step: int) -> float:
        """What will be spent when `step` is done."""
        return self.spent + max(0, step - self.step) * self.per_step


class SpentCourse(Course):
    """The budget is `budget` seconds, joules or dollars: the last step is the one that ends nearest to its end."""

    def __init__(self, reads: Positions | Sizes, budget: float, *, after: int, decided: Mapping[int, float]) -> None:
        """`after`: the step after which the run goes on. `decided`: progress of steps that were decided earlier."""
        super().__init__(reads)
        self._budget = budget
        self._progress = dict(decided)
        self._known = after
        self._news: list[tuple[int, float]] = []
        self.outlook = Outlook(step=after)

    @property
    def last(self) -> int | None:
        """The run's last step; None: not known yet."""
        return self._known if self.progress(self._known) >= 1.0 else None

    @property
    def expected(self) -> int:
        """The run's last step, as far as it can be foreseen."""
        known, per_step = self._known, self.outlook.per_step
        if self.last is not None or not per_step:
            return known
        return max(known, self.outlook.step + round((self._budget - self.outlook.spent) / per_step))

    def progress(self, step: int) -> float:
        """Share of the budget that is used when `step`, which is decided, is done."""
        return self._progress.get(step, 0.0)

    def decide(self, until: int) -> int:
        """Decide about the steps up to `until`; returns the last step that is decided, `until` at most."""
        while self._known < until and self.last is None:
            step = self._known + 1
            progress = self._progress[step] if step in self._progress else self._share(step)
            if not self.sizes.settle(step, progress):
                break
            if step not in self._progress:
                self._news.append((step, progress))
            self._progress[step], self._known = progress, step
        return min(until, self._known)

    def news(self) -> tuple[tuple[int, float], ...]:
        """(step, progress) of what was decided since the last call: to be written down before anybody is told."""
        fresh, self._news = tuple(self._news), []
        return fresh

    def restore(self, decided: Iterable[tuple[int, float]]) -> None:
        """Take over what an earlier life of the coordinator told the members: (step, progress)."""
        self._progress.update(decided)

    def _share(self, step: int) -> float:
        spent = self.outlook.after(step)
        if spent + self.outlook.per_step / 2 >= self._budget:
            return 1.0  # one more step would end further beyond the budget than this one ends before it
        return max(spent / self._budget, self.progress(step - 1))
