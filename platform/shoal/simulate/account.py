"""Where every worker-second went, and which steps are done and safe."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from math import fsum


@dataclass(slots=True)
class Spent:
    """Worker-seconds. Together they are the time of all workers from their coming to their going."""

    useful: float = 0.0
    """Computing steps that are part of the run."""
    overhead: float = 0.0
    """Snapshots and checkpoints."""
    redone: float = 0.0
    """Steps that were lost after they were done, with all that was spent on them; they are done again."""
    lost: float = 0.0
    """The step in flight when a view broke."""
    stopped: float = 0.0
    """Members of a view that is being formed: detecting, restarting, forming, moving the state."""
    start: float = 0.0
    """Workers that are not ready yet."""
    idle: float = 0.0
    """Ready, and with nothing to do: spares, runs that wait for workers, members with fewer virtual shards than others.
    """

    @property
    def total(self) -> float:
        """The sum of all."""
        return fsum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the view."""

    what: str
    """loss, change (planned) or start."""
    at_s: float
    """When it happened; of a planned one: the boundary."""
    stop_s: float
    """Until the next view went on."""
    members: int
    """Of the view that follows."""
    steps_redone: int
    from_memory: bool


@dataclass(slots=True)
class _Stretch:
    """Steps of one view."""

    first: int
    count: int
    useful: float
    overhead: float
    idle: float
    """Worker-seconds of each step."""


@dataclass(slots=True)
class Progress:
    """The steps done so far, back to the last checkpoint, and what they took."""

    spent: Spent = field(default_factory=Spent)
    done: int = 0
    """Steps that are part of the run as it stands."""
    redone: int = 0
    """Steps that were lost after they were done."""
    saved: int = 0
    """The last step with a durable checkpoint."""
    _stretches: list[_Stretch] = field(default_factory=list)

    def add(self, steps: int, *, useful: float, overhead: float, idle: float) -> None:
        """So many more steps are done; each took this."""
        if steps > 0:
            self._stretches.append(_Stretch(self.done + 1, steps, useful, overhead, idle))
            self._book(steps, self._stretches[-1])
            self.done += steps

    def save(self, step: int) -> None:
        """There is a durable checkpoint of `step`: nothing before it can be lost."""
        self.saved = max(self.saved, step)
        self._stretches = [s for s in self._stretches if s.first + s.count - 1 > self.saved]

    def back_to(self, step: int) -> int:
        """All steps beyond `step` are lost; returns how many these are."""
        assert self.saved <= step, f"step {self.saved} is saved, so nobody goes back to {step}"
        lost = self.done - step
        left = lost
        while left > 0:
            stretch = self._stretches[-1]
            count = min(left, stretch.count)
            self._book(-count, stretch)
            self.spent.redone += count * (stretch.useful + stretch.overhead + stretch.idle)
            stretch.count -= count
            left -= count
            if not stretch.count:
                self._stretches.pop()
        self.done, self.redone = self.done - lost, self.redone + lost
        return lost

    def _book(self, steps: int, stretch: _Stretch) -> None:
        self.spent.useful += steps * stretch.useful
        self.spent.overhead += steps * stretch.overhead
        self.spent.idle += steps * stretch.idle
