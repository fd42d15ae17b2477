"""What the ledger alone proves: which steps count, that none is missing or doubled, and on which samples. Pure."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.job.steps import OPEN
from shoal.positions import Positions

Entry = Mapping[str, Any]

MISSING, PRESENT = 0, 1


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that must not be. `steps` are the first and the last step that it concerns."""

    kind: str
    """missing, doubled, order, samples, batch, view, resume, end, epoch, content or data."""
    text: str
    steps: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class RolledBack:
    """Steps first..last that were committed and then taken back."""

    first: int
    last: int
    reason: str


class Spans:
    """Steps as few ranges: [first, last, tag], grown by one step at a time."""

    def __init__(self) -> None:
        self._spans: list[list[Any]] = []

    def add(self, step: int, tag: object = None) -> None:
        last = self._spans[-1] if self._spans else None
        if last is not None and (last[1] + 1, last[2]) == (step, tag):
            last[1] = step
        else:
            self._spans.append([step, step, tag])

    def __iter__(self) -> Iterator[tuple[int, int, Any]]:
        return ((a, b, tag) for a, b, tag in self._spans)


class Chain:
    """The commits of one run, in the order of its ledger.

    `positions` are those that its steps have to read; None: as the ledger's first entry says, or, if that is silent, as
    many in each step as in the first commit. `forked`: it began with another run's checkpoint, as its first `resume`
    says. The state is small: nine bytes per step.
    """

    def __init__(self, positions: Positions | None = None, *, forked: bool = False) -> None:
        self.positions = positions
        self.first = 1
        """The first step that is this run's own: more than 1 if it began with another run's checkpoint."""
        self.start: dict[str, Any] = {}
        """What the `start` entries say."""
        self.end: Entry | None = None
        """The run's last word; None while it runs, or if it died."""
        self.views = 0
        self.sizes: set[int] = set()
        """How many members the views had."""
        self.changes: Counter[str] = Counter()
        """join, leave, loss: how often."""
        self.rolled_back: list[RolledBack] = []
        self.epoch_samples: int | None = None
        self._digests = array("Q")
        self._state = bytearray()
        self._odd: dict[int, tuple[int, int]] = {}
        self._views: list[tuple[int, int]] = []
        self._last_view = 0
        self._restarted, self._began = False, not forked
        self._doubled, self._late, self._strange = Spans(), Spans(), Spans()
        self._said: list[Fault] = []

    @property
    def last(self) -> int:
        """The last committed step that counts; `first - 1` if there is none."""
        return self.first + len(self._state) - 1

    def digest(self, step: int) -> str:
        """The recorded digest of a step's samples; "" if there is none."""
        at = step - self.first
        return f"{self._digests[at]:016x}" if 0 <= at < len(self._digests) and self._digests[at] else ""

    def range_of(self, step: int) -> tuple[int, int]:
        """The samples [a, b) of the endless stream that a step of this run has to use."""
        assert self.positions is not None, "there are no steps that read nothing"
        return self.positions.of(step)

    def add(self, entries: Iterable[Entry]) -> Chain:
        """Go on with further entries, in the ledger's order."""
        handlers = {
            "start": self._start, "view": self._begin_view, "batch": self._grow, "commit": self._commit,
            "resume": self._resume,
        }  # fmt: skip
        for entry in entries:
            kind = entry["kind"]
            if kind in handlers:
                handlers[kind](entry)
            elif kind == "end":
                self.end = entry
                self._views.clear()
            elif kind == "loss":
                self.changes["loss"] += 1
            elif kind == "change" and entry["what"] in ("join", "leave"):  # the others are told by `loss`
                self.changes[entry["what"]] += 1
        return self

    def _start(self, entry: Entry) -> None:
        self.start.update(entry)
        if self.positions is None and entry.get("positions"):
            self.positions = Positions.from_json(entry["positions"], int(entry["total_steps"] or OPEN))
        self.epoch_samples = entry.get("samples", self.epoch_samples)

    def _grow(self, entry: Entry) -> None:
        """The size of the batch was decided on the way, before the first of its steps was begun."""
        step, size = int(entry["step"]), int(entry["size"])
        assert self.positions is not None, "the ledger's first entry says how the run begins"
        if step <= self.last or step <= self.positions.spans[-1][0]:
            text = f"the batch of step {step} was decided after step {max(self.last, self.positions.spans[-1][0])}"
            self._said.append(Fault("batch", text, (step, step)))
        elif size != self.positions.spans[-1][1]:
            self.positions = Positions((*self.positions.spans, (step, size)), self.positions.steps)

    def _begin_view(self, entry: Entry) -> None:
        number, first = int(entry["number"]), int(entry.get("first_step") or 0)
        # A new process of an earlier release counts its views from 1 again; the commits then follow a `resume`.
        self._restarted = number == 1 and self._last_view > 0
        if number <= self._last_view and not self._restarted:
            self._said.append(Fault("view", f"view {number} comes after view {self._last_view}"))
        if self._restarted:
            self._views.clear()
        if number > self._last_view or self._restarted:
            self._views.append((number, first))
        self.end, self._last_view = None, number
        self.views += 1
        self.sizes.add(len(entry.get("members", ())))

    def _resume(self, entry: Entry) -> None:
        step, self._restarted = int(entry["from_step"]), False
        if not self._began:
            self.first, self._began = step + 1, True
        elif step < self.first - 1:
            text = f"the run went on after step {step}, before its own first step {self.first}"
            self._said.append(Fault("resume", text))
        elif step < self.last:
            reason = str(entry.get("reason") or "")
            self.rolled_back.append(RolledBack(step + 1, self.last, reason))
            keep = step - self.first + 1
            del self._digests[keep:], self._state[keep:]
            self._odd = {s: r for s, r in self._odd.items() if s <= step}
        else:
            self._leave_out(step)

    def _commit(self, entry: Entry) -> None:
        step, low, high = int(entry["step"]), *map(int, entry["samples"])
        self._began = True
        self.positions = self.positions or Positions.even(high - low, step)
        if self.epoch_samples is None and entry.get("epoch"):
            self.epoch_samples = round(high / entry["epoch"])
        self._belongs(entry, step)
        at = step - self.first
        if at < 0 or (at < len(self._state) and self._state[at] == PRESENT):
            self._doubled.add(step)
            return
        if at < len(self._state):
            self._late.add(step)
        else:
            self._leave_out(step)
        self._state[at] = PRESENT
        self._digests[at] = int(entry.get("samples_digest") or "0", 16)
        if (low, high) != self.range_of(step):
            self._odd[step] = (low, high)

    def _leave_out(self, until: int) -> None:
        """Note the steps after the last one up to `until` as missing; a commit of one of them fills the gap."""
        count = until - self.last
        self._state.extend(bytes([MISSING]) * count)
        self._digests.extend([0] * count)

    def _belongs(self, entry: Entry, step: int) -> None:
        """Whether the step is one of its view's: from the view's first on, and before any later view's first.

        The last steps of a view that broke count only when the next one holds the state, so they may come after it.
        """
        number, why = int(entry["view"]), ""
        at = next((i for i, (known, _) in enumerate(self._views) if known == number), None)
        if at is not None:
            del self._views[:at]  # the views of commits never go back
        if at is None:
            why = "which is not (or not any more) one that goes on"
        elif step < self._views[0][1]:
            why = f"which began with step {self._views[0][1]}"
        elif self._restarted:
            why = "which began anew without a resume"
        else:
            later = next((v for v in self._views[1:] if v[1] <= step), None)
            why = f"although view {later[0]} went on from step {later[1]}" if later else ""
        if why:
            self._strange.add(step, f"view {number}, {why}")

    # What follows from it ------------------------------------------------------------------------------------------

    def faults(self, total_steps: int | None = None) -> list[Fault]:
        """Everything that is wrong, in words. `total_steps`: what a finished run must have done."""
        out = list(self._said)
        for a, b, _ in self._gaps():
            low, high = self.range_of(a)[0], self.range_of(b)[1]
            text = f"{steps(a, b)} never committed: samples [{low}, {high})"
            out.append(Fault("missing", text, (a, b)))
        for a, b, _ in self._doubled:
            text = f"{steps(a, b)} committed a second time, without a resume in between"
            out.append(Fault("doubled", text, (a, b)))
        for a, b, _ in self._late:
            out.append(Fault("order", f"{steps(a, b)} committed after a later step", (a, b)))
        for a, b, where in self._strange:
            out.append(Fault("view", f"{steps(a, b)} committed in {where}", (a, b)))
        for step, (low, high) in self._odd.items():
            want = "[{}, {})".format(*self.range_of(step))
            out.append(Fault("samples", f"step {step} used samples [{low}, {high}) in place of {want}", (step, step)))
        if self.end is not None and self.end.get("status") == "finished" and total_steps not in (None, self.last):
            out.append(Fault("end", f"the run says that it finished, with {self.last} of {total_steps} steps"))
        return out

    def coverage(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Ranges of samples between the first and the last that were used by no step that counts, and by several."""
        if self.positions is None or self.last < self.first:
            return [], []
        begin, at = self.range_of(self.first)[0], self.range_of(self.first)[0]
        missing, doubled = [], []
        for low, high in sorted(self._used()):
            if low > at:
                missing.append((at, low))
            elif low < at and max(low, begin) < min(at, high):
                doubled.append((max(low, begin), min(at, high)))
            at = max(at, high)
        end = self.range_of(self.last)[1]
        return missing + ([(at, end)] if at < end else []), doubled

    def _used(self) -> Iterator[tuple[int, int]]:
        """The samples of all steps that count, neighbouring steps in one range."""
        spans = Spans()
        for at, state in enumerate(self._state):
            if state == PRESENT and self.first + at not in self._odd:
                spans.add(self.first + at)
        for a, b, _ in spans:
            yield self.range_of(a)[0], self.range_of(b)[1]
        yield from self._odd.values()

    def _gaps(self) -> Spans:
        spans = Spans()
        at = self._state.find(MISSING)
        while at >= 0:
            spans.add(self.first + at)
            at = self._state.find(MISSING, at + 1)
        return spans


def steps(first: int, last: int) -> str:
    """`step 7 was`, `steps 7 to 9 were`."""
    return f"step {first} was" if first == last else f"steps {first} to {last} were"
