"""From members' reports to commits: a step is committed when every member of its view has applied it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, TypeVar

from shoal.membership.messages import EvaluationReport, ShardWritten, StepReport
from shoal.membership.view import MemberId, View


@dataclass(frozen=True, slots=True)
class Commit:
    """One step as the record keeps it. Times: the slowest member's step, and the mean of the members' parts."""

    step: int
    view: int
    samples: tuple[int, int]
    loss: float
    lr: float
    grad_norm: float
    workers: int
    step_s: float
    data_wait_s: float
    compute_s: float
    communicate_s: float
    update_s: float


T = TypeVar("T")


class Gathering(Generic[T]):
    """Collects one thing per member and step, and hands a step out when it is complete and all before it are."""

    def __init__(self, members: Sequence[MemberId], first_step: int | None = None) -> None:
        self._members = tuple(members)
        self._open: dict[int, dict[MemberId, T]] = {}
        self._next = first_step

    def add(self, member: MemberId, step: int, thing: T) -> list[tuple[int, list[T]]]:
        """Returns the steps that became complete, in order, each with its things in rank order."""
        assert member in self._members, f"{member} is not in {self._members}"
        self._open.setdefault(step, {})[member] = thing
        done = []
        for s in sorted(self._open):
            in_turn = self._next is None or s == self._next
            if not in_turn or len(self._open[s]) < len(self._members):
                break
            things = self._open.pop(s)
            done.append((s, [things[m] for m in self._members]))
            if self._next is not None:
                self._next = s + 1
        return done


class Tally:
    """All that is gathered in one view."""

    def __init__(self, view: View, *, first_step: int, batch_size: int) -> None:
        self.view = view
        self.committed = first_step - 1
        self.reported = first_step - 1
        self._batch_size = batch_size
        self._steps: Gathering[StepReport] = Gathering(view.members, first_step)
        self._evaluations: Gathering[EvaluationReport] = Gathering(view.members)
        self._written: Gathering[ShardWritten] = Gathering(view.members)

    def step(self, member: MemberId, report: StepReport) -> list[Commit]:
        """Steps that `report` completes."""
        self.reported = max(self.reported, report.step)
        commits = [self._commit(s, said) for s, said in self._steps.add(member, report.step, report)]
        if commits:
            self.committed = commits[-1].step
        return commits

    def evaluation(self, member: MemberId, report: EvaluationReport) -> list[tuple[int, dict[str, float], float]]:
        """Evaluations that `report` completes: (step, means over all samples, seconds)."""
        return [
            (s, _means(said), max(r.seconds for r in said))
            for s, said in self._evaluations.add(member, report.step, report)
        ]

    def written(self, member: MemberId, report: ShardWritten) -> list[tuple[int, list[ShardWritten]]]:
        """Checkpoints of which every member's part is written (or failed): (step, parts in rank order)."""
        return self._written.add(member, report.step, report)

    def _commit(self, step: int, said: Sequence[StepReport]) -> Commit:
        # Rank order is shard order, so the loss is summed in the same order on any number of workers.
        parts = [part for r in said for part in r.losses]
        return Commit(
            step=step,
            view=self.view.number,
            samples=((step - 1) * self._batch_size, step * self._batch_size),
            loss=sum(n * loss for n, loss in parts) / sum(n for n, _ in parts),
            lr=said[0].lr,
            grad_norm=said[0].grad_norm,
            workers=len(said),
            step_s=max(r.step_s for r in said),
            data_wait_s=fmean(r.data_wait_s for r in said),
            compute_s=fmean(r.compute_s for r in said),
            communicate_s=fmean(r.communicate_s for r in said),
            update_s=fmean(r.update_s for r in said),
        )


def _means(said: Sequence[EvaluationReport]) -> dict[str, float]:
    samples = sum(r.samples for r in said)
    names = sorted({name for r in said for name in r.sums})
    return {name: sum(r.sums.get(name, 0.0) for r in said) / samples for name in names}
