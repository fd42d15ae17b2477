"""What a run has used so far of what is used up by the doing: seconds by the clock, over all its launches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.job import Job
from shoal.membership.course import Course, SpentCourse
from shoal.positions import Positions


class Spending:
    """The account of one run. Times are a monotonic clock's, passed in."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def remember(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Go on from what the ledger says was used, steps that were rolled back included."""
        for entry in entries:
            if entry["kind"] == "commit" and "used" in entry:
                self._seconds = max(self._seconds, float(entry["used"]["seconds"]))

    def begin(self, now: float) -> None:
        """The first view of this launch begins; later calls change nothing."""
        self._since = now if self._since is None else self._since

    def used(self, now: float) -> dict[str, float]:
        """By unit: `seconds`."""
        return {"seconds": self._seconds + (now - self._since if self._since is not None else 0.0)}


def course_of(job: Job, positions: Positions, *, after: int, entries: Iterable[Mapping[str, Any]]) -> Course:
    """The course of `job` from step `after` on. `entries`: a ledger with steps of it that were decided already."""
    unit = job.budget.spent
    if unit is None:
        return Course(positions, by="steps" if job.budget.steps is not None else "samples")
    commits = [e for e in entries if e["kind"] == "commit" and "progress" in e]
    decided = {int(e["step"]): float(e["progress"]) for e in commits}
    return SpentCourse(positions, getattr(job.budget, unit), after=after, decided=decided)
