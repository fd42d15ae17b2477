"""A sweep while it goes: which trial is next, what was heard of those that run, when it is over.

Knows nothing of Ray Tune and of runs; whoever drives it says what it heard and does what it answers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoal.tuning.ledger import SweepLedger
from shoal.tuning.meter import Used
from shoal.tuning.orders import Evaluated, Order, Said, Started
from shoal.tuning.propose import propose
from shoal.tuning.space import Point as Fields
from shoal.tuning.space import holds
from shoal.tuning.spec import Sweep
from shoal.tuning.trials import Point, SweepState, TrialRow, TrialStatus

ALIKE = 3
"""So many trials that fail first, and with the same error, end the sweep."""


@dataclass(frozen=True, slots=True)
class Closing:
    """Why no trial begins any more."""

    reason: str
    failed: bool = False
    by_user: bool = False


class Sweeping:
    """One sweep between its opening and its end. `ledger` is the truth; this asks it and adds to it."""

    def __init__(self, sweep: Sweep, runs: Path, ledger: SweepLedger, used_by: Callable[[TrialRow], Used]) -> None:
        """`used_by`: what the runs that a trial had before its present one have used."""
        self.sweep, self.runs, self.ledger = sweep, runs, ledger
        self.closing: Closing | None = None
        self._used_by = used_by
        axes = sweep.axes
        self._waiting = [r for r in self.state.rows if r.status in ("running", "interrupted") and holds(axes, r.fields)]
        for row in [r for r in self.state.rows if r.status == "running" and r not in self._waiting]:
            self.ledger.ended(row.number, "interrupted", "outside of the space that the sweep has now")
        self._going: set[int] = set()
        self._why: dict[int, str] = {}

    @property
    def state(self) -> SweepState:
        return self.ledger.state

    @property
    def running(self) -> list[TrialRow]:
        return [row for row in self.state.rows if not row.over]

    @property
    def training(self) -> list[TrialRow]:
        """Those that this process has begun or continued, and that are not over."""
        return [row for row in self.running if row.number in self._going]

    @property
    def left(self) -> int:
        """Trials that will still begin or go on, as far as one can tell now."""
        return len(self._waiting) + max(0, self.sweep.total - self._counted())

    # What is next ----------------------------------------------------------------------------------------------------

    @property
    def room(self) -> bool:
        """Whether another trial may train now."""
        return len(self._going) < self.sweep.at_once

    def next(self) -> Order | None:
        """The next trial, an unfinished one first; None: there is none."""
        if self.closing is not None:
            return None
        if self._waiting:
            return self._continued(self._waiting.pop(0))
        number = len(self.state.rows)
        fields = propose(self.sweep, number, self.state.rows) if self._counted() < self.sweep.total else None
        if fields is None:
            return None
        width = max(2, len(str(self.sweep.total - 1)))
        name = run = f"{self.state.name}-{number:0{width}}"
        while (self.runs / run).exists():  # of a sweep of that name whose folder is gone
            run += "-again"
        self.ledger.suggested(number, name=name, run=run, folder=str(self.runs / run), fields=fields)
        self._going.add(number)
        return Order(number=number, name=name, run_id=run, fields=fields)

    def forked(self, number: int, parent: int, fields: Fields) -> Order:
        """Trial `number` goes on from the last checkpoint of `parent`, with other fields (population)."""
        row, source = self.state.rows[number], self.state.rows[parent]
        run = f"{row.name}-{len(row.runs) + 1}"
        used = Used(seconds=row.seconds, worker_seconds=row.worker_seconds, joules=row.joules, dollars=row.dollars)
        self.ledger.continued(number, run=run, folder=str(self.runs / run), fields=fields, parent=parent)
        return Order(number=number, name=row.name, run_id=run, fields=fields, fork_from=source.run_id, used=used)

    def _continued(self, row: TrialRow) -> Order:
        self.ledger.continued(row.number, run=row.run_id, folder=row.folder, fields=row.fields, parent=row.parent)
        self._going.add(row.number)
        return Order(
            number=row.number,
            name=row.name,
            run_id=row.run_id,
            fields=row.fields,
            after=row.step,
            used=self._used_by(row),
        )

    def _counted(self) -> int:
        """Trials that count: those of a narrower or another space do only where they lie in this one."""
        axes = self.sweep.axes
        return sum(holds(axes, row.fields) for row in self.state.rows)

    # What was heard --------------------------------------------------------------------------------------------------

    def heard(self, number: int, said: Said) -> None:
        """Write it down, and see what it means for the sweep."""
        if isinstance(said, Started):
            row = self.state.rows[number]
            if said.run_id != row.run_id:  # it had no checkpoint, and began anew
                self.ledger.continued(number, run=said.run_id, folder=said.folder, fields=row.fields, parent=row.parent)
            self.ledger.started(number, said.total_steps)
        elif isinstance(said, Evaluated):
            self.ledger.result(number, said.point)
            self._check_reported(number, said.point)
        else:
            self.ended(number, said.status, said.reason)

    def ended(self, number: int, status: TrialStatus, reason: str = "") -> None:
        """The trial is over. The first word on it counts."""
        self._going.discard(number)
        row = self.state.rows[number]
        if row.over:
            return
        if status == "interrupted" and number in self._why:
            status, reason = "stopped-early", self._why[number]
        elif status == "interrupted" and self.closing is not None:
            reason = self.closing.reason
        if status == "finished" and row.last is None:
            status, reason = "failed", f"it finished without an evaluation that reports {self.sweep.metric}"
        self.ledger.ended(number, status, reason)
        if status == "failed":
            self._look_for_a_common_error()

    def will_stop(self, number: int, reason: str) -> None:
        """The rule ends this trial; the first reason is kept for its end. What its run evaluates until it hears of that
        counts, and one that has used its budget up before has finished: the record of the run says the same."""
        self._why.setdefault(number, reason)

    def why(self, number: int) -> str | None:
        """Why the rule ends this trial; None: it does not."""
        return self._why.get(number)

    def close(self, reason: str, *, failed: bool = False, by_user: bool = False) -> None:
        """Begin no trial any more. The first reason counts."""
        self.closing = self.closing or Closing(reason, failed, by_user)

    def look_at_budget(self) -> None:
        """Close when the sweep's own budget is used up."""
        state, limits = self.state, self.sweep.budget.given()
        for name, limit in limits.items():
            used = state.elapsed(time.time()) if name == "seconds" else state.spent(name)  # type: ignore[arg-type]
            if used is not None and used >= limit:
                self.close(f"the sweep's budget of {limit:g} {name} is used up")

    def _check_reported(self, number: int, point: Point) -> None:
        row, metric = self.state.rows[number], self.sweep.metric
        if metric not in point.metrics:
            known = ", ".join(sorted(point.metrics)) or "nothing"
            self.close(
                f"no {metric} is reported; the evaluation of {row.run_id} has {known}: set metric to one of them",
                failed=True,
            )
        needed = {self.sweep.resource, *self.sweep.budget.given()} - {"seconds", "samples", "steps"}
        needed |= set(self.sweep.objectives[1:]) & {"joules", "dollars"}
        for name in sorted(needed):
            if getattr(point, name) is None:
                said = f"the sweep counts {name}, but its runs do not say how many they use; count samples or seconds"
                self.close(said, failed=True)

    def _look_for_a_common_error(self) -> None:
        over = [row for row in self.state.rows if row.over]
        errors = Counter(last_line(row.reason) for row in over if row.status == "failed")
        if len(errors) == 1 and sum(errors.values()) == len(over) >= min(ALIKE, self.sweep.total):
            self.close(f"all {len(over)} trials so far failed with the same error: {over[0].reason}", failed=True)

    def finish(self) -> SweepState:
        """The last word; returns the sweep as it ended."""
        state, closing = self.state, self.closing
        for row in self.running:
            self.ledger.ended(row.number, "interrupted", closing.reason if closing else "the sweep ended before it")
        best = state.best
        if closing is not None and (closing.failed or closing.by_user):
            status, reason = ("failed" if closing.failed else "stopped"), closing.reason
        elif best is None:
            status, reason = "failed", "no trial has reported a value: see why each of them failed"
        else:
            status, reason = "finished", closing.reason if closing else "all trials are over"
        self.ledger.closed(status, reason, best.number if best else None)
        return state


def last_line(error: str) -> str:
    """Of a traceback, the line that says what it was."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else ""
