"""What is committed over the views of a run: the one place that knows when a step cannot be lost any more. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from shoal.membership.commits import Progressed, Tally
from shoal.membership.leasing import Due
from shoal.membership.messages import Reports, ViewEnd


@dataclass(frozen=True, slots=True)
class Closed:
    """A view that is over, with what its members said last; some of its steps may not be final yet."""

    tally: Tally
    ends: tuple[ViewEnd, ...]


class Account:
    """The tally of the view that runs, and those of the views before it while steps of theirs are not final.

    After a loss the next view goes on from a step S that the survivors hold. The steps up to S are not committed then,
    but when the new view is safe: until then one more loss may take S away, and a commit cannot be taken back.
    """

    def __init__(self, committed: int = 0) -> None:
        self.committed = committed
        """The last step that is committed (that is in the ledger, if the caller writes down all that it is given)."""
        self.tally: Tally | None = None
        self._closed: list[Closed] = []

    def begin(self, tally: Tally) -> None:
        """A view is formed, and goes on from the step before its first one. What lies beyond that is forgotten."""
        source = tally.first_step - 1
        self._closed = [c for c in self._closed if c.tally.first_step - 1 < source]
        self.committed = min(self.committed, tally.committed)
        self.tally = tally

    def add(self, reports: Reports) -> Progressed:
        """Hear a member. Returns what became final, in order; a word from another view changes nothing."""
        if self.tally is None or reports.view != self.tally.view.number:
            return Progressed()
        return self._with_earlier(self.tally, self.tally.add(reports))

    def close(self, ends: Iterable[ViewEnd]) -> Progressed:
        """The view is over; `ends`: what those of its members who live said last. Returns what became final."""
        tally = self.tally
        assert tally is not None, "no view runs"
        last = tuple(ends)
        said = [e.reports for e in last if e.reports is not None and e.reports.view == tally.view.number]
        final = [self._with_earlier(tally, tally.add(r)) for r in said]
        self._closed.append(Closed(tally, last))
        self.tally = None
        return merged(final)

    def adopt(
        self,
        tallies: Sequence[Tally],
        ends: Iterable[ViewEnd],
        *,
        evaluated: Collection[int] = (),
        saved: Collection[int] = (),
    ) -> Progressed:
        """Follow a coordinator that was lost. Returns what became final by what is known of views that are over.

        `tallies`: new ones of the run's views in order; the last view is taken for running. `ends`: what living workers
        still have of the views before it; a step of which none of them tells is committed all the same, without its
        numbers. `evaluated`, `saved`: steps whose evaluation or checkpoint is in the ledger.
        """
        words, committed = tuple(ends), self.committed
        begun = [i for i, t in enumerate(tallies) if t.first_step - 1 <= committed]
        final = []
        for tally in tallies[max(begun, default=0) :]:
            if self.tally is not None:
                final.append(self.close(e for e in words if e.view == self.tally.view.number))
            tally.resume_at(committed, evaluated=evaluated, saved=saved)
            if tally is tallies[-1]:
                tally.unsaid = self._unsaid(tally)
            self.begin(tally)
        return merged(final)

    def owes(self, step: int) -> Due:
        """What a view that goes on after `step` has to do first, since the views before it did not get done with it."""
        evaluate = checkpoint = None
        for closed, limit in reversed(self._limits(step, even_if_nothing_remains=True)):
            # The latest view in which something was due knows whether the last one is done.
            e, c = closed.tally.owes(limit, goes_on=closed.tally.first_step - 1 < step)
            evaluate = e if evaluate is None else evaluate
            checkpoint = c if checkpoint is None else checkpoint
        return Due(bool(evaluate), bool(checkpoint))

    def _unsaid(self, running: Tally) -> Due:
        """What was whole when `running` was formed, and so not asked of it, but had not become final: the word of a
        member that is gone went with the coordinator that had heard it."""
        source = running.first_step - 1
        owed, asked = self.owes(source), running.owes(source, goes_on=False)
        return Due(owed.evaluate and asked[0] is None, owed.checkpoint and asked[1] is None)

    def _with_earlier(self, tally: Tally, final: Progressed) -> Progressed:
        """`final` of the view that runs, after what becomes final of earlier views by this one being safe."""
        if not tally.safe:
            return Progressed(stable=self.committed)
        earlier = [c.tally.settle(c.ends, limit) for c, limit in self._limits(tally.first_step - 1)]
        self._closed.clear()
        self.committed = max(self.committed, tally.committed)
        return merged([*earlier, final]) if earlier else final

    def _limits(self, source: int, *, even_if_nothing_remains: bool = False) -> list[tuple[Closed, int]]:
        """Each closed view with the last step of it that is part of the run, if the next one goes on from `source`."""
        kept = [c for c in self._closed if c.tally.first_step - 1 < source + even_if_nothing_remains]
        next_ones = [*(c.tally.first_step - 1 for c in kept), source][1:]
        return list(zip(kept, next_ones, strict=True))


def merged(parts: Sequence[Progressed]) -> Progressed:
    """Several of them, one after another."""
    return Progressed(
        tuple(c for p in parts for c in p.commits),
        tuple(e for p in parts for e in p.evaluations),
        tuple(w for p in parts for w in p.written),
        max((p.stable for p in parts), default=0),
    )
