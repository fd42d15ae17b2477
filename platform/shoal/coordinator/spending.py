"""What a run has used so far, of seconds, joules and dollars, over all its launches; and the course that follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.coordinator.book import Book
from shoal.coordinator.crew import Hand
from shoal.errors import ConfigError
from shoal.job import Cost, Job
from shoal.job.cost import CARBON_G_PER_KWH, SOURCES
from shoal.membership.course import Course, SpentCourse
from shoal.membership.messages import Reading, Reports
from shoal.membership.sizes import Sizes
from shoal.membership.view import MemberId
from shoal.positions import Positions
from shoal.tracking.expenses import Expenses, Line, Totals, phase_of
from shoal.tracking.prices import Rate, Tariff

WRITE_EVERY_S = 10.0
"""Between two entries in the ledger while nobody comes or goes. If everything is lost at once, it is not known for what
the energy of so long was used; how much it was, the commits say."""
WORKERS_PER_S = 10.0
"""An entry has a line for each worker: of many it is written less often, so that the ledger grows no faster."""
JOULES_PER_KWH = 3.6e6


class Spending:
    """The account of one run. Times are a monotonic clock's, passed in."""

    def __init__(self, tariff: Tariff, tokens_per_sample: int | None) -> None:
        self._tariff, self._tokens = tariff, tokens_per_sample
        self._account = Expenses()
        self._seconds = 0.0
        self._since: float | None = None
        self._said: dict[str, float] = {}
        """The most that the ledger says was used, by unit."""
        self._lost: set[MemberId] = set()
        self._welcomed: set[MemberId] = set()
        """Those whose start is booked, and whose price is known."""
        self._warned: set[str] = set()
        self._most = self._again_until = 0
        self._first_sample: int | None = None
        self._written: float | None = None
        self._remembers = False

    # From the ledger -----------------------------------------------------------------------------------------------

    def remember(self, entries: Iterable[Mapping[str, Any]], now: float, wall: float, *, revived: bool) -> None:
        """Go on from what the ledger says was used, steps that were rolled back included. `wall`: Unix seconds.

        `revived`: this launch goes on, and its workers with it; else these are gone, and nothing was used since.
        """
        self._remembers = True
        for entry in entries:
            kind = entry["kind"]
            if kind == "start":
                self._close_launch()
            elif kind == "cost":
                self._account = Expenses.from_json(entry, now - (wall - entry["time"]))
            elif kind == "commit":
                self.note_samples(entry["samples"][0])
                self._most = max(self._most, entry["step"])
                for unit, amount in entry.get("used", {}).items():
                    self._said[unit] = max(self._said.get(unit, 0.0), float(amount))
                if revived:
                    self._since = now - max(0.0, wall - entry["time"])
        self._seconds = self._said.get("seconds", 0.0)
        if revived:
            self._lost.update(self._account.open)  # who has gone meanwhile was lost
            self._welcomed.update(worker for worker, line in self._account.open.items() if line.source)

    def _close_launch(self) -> None:
        """All its workers are gone. What commits say was used beyond the last word of the account was lost track of."""
        account = self._account
        for line in account.open.values():
            account.closed.add(line)
        account.open.clear()
        for unit, by_phase in (("joules", account.closed.joules), ("dollars", account.closed.dollars)):
            missing = self._said.get(unit, 0.0) - sum(by_phase.values())
            if missing > 0:
                by_phase["lost"] = by_phase.get("lost", 0.0) + missing

    # While it runs -------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """The first view of this launch begins; later calls change nothing."""
        self._since = now if self._since is None else self._since

    def view(self) -> None:
        """A view is formed: steps that somebody had applied before are done again."""
        self._again_until = self._most

    def note_samples(self, first: int) -> None:
        """The position of the first sample that this run, forked or not, has read; later calls change nothing."""
        self._first_sample = first if self._first_sample is None else self._first_sample

    def hear(self, reports: Reports, now: float, *, entered: bool) -> None:
        """What a member of the view says of itself; `entered`: it held the state when it spoke last."""
        self._most = max([self._most, *(s.step for s in reports.steps)])
        again = 0 < reports.progress.step <= self._again_until
        self._read(reports.member, reports.reading, phase_of(reports.progress.doing, entered=entered, again=again), now)

    def left_view(self, reports: Reports, now: float) -> None:
        """A member is out of a view that broke."""
        self._read(reports.member, reports.reading, "regroup", now)

    def beside(self, member: MemberId, reading: Reading, now: float) -> None:
        """The meter of a worker that is in no view."""
        self._read(member, reading, "idle", now)

    def lose(self, member: MemberId) -> None:
        """It died: what it has used since its last word is extrapolated."""
        self._lost.add(member)

    def _read(self, member: MemberId, reading: Reading | None, phase: str, now: float) -> None:
        if reading is not None:
            self._account.hear(member, reading.joules, reading.source, phase, now)

    def tend(self, book: Book, hands: Mapping[MemberId, Hand], now: float, wall: float) -> None:
        """Called a few times a second, and before each view: see who has come and gone, and write the account down now
        and then."""
        changed = False
        for member, hand in hands.items():
            if member not in self._account.open:
                self._account.join(member, now - max(0.0, wall - hand.begun))
                changed = True
            if hand.facts is not None and member not in self._welcomed:
                self._welcome(book, hand, now)
                changed = True
        for member in [m for m in self._account.open if m not in hands]:
            line = self._account.leave(member, now, lost=member in self._lost)
            book.write("worker", member=member, lost=member in self._lost, **_departure(line, now, wall))
            changed = True
        self._lost.clear()
        apart = max(WRITE_EVERY_S, len(self._account.open) / WORKERS_PER_S)
        if changed or self._written is None or now - self._written >= apart:
            self._write(book, now)

    def _welcome(self, book: Book, hand: Hand, now: float) -> None:
        """A worker is ready: what its start took, and what it costs."""
        assert hand.facts is not None, "a worker that is ready"
        self._welcomed.add(hand.member)
        self._read(hand.member, hand.facts.reading, "start", now)
        rate = self._rate(book, hand.facts.labels)
        if rate is not None:
            self._account.price(hand.member, rate.per_hour, rate.said)

    def _rate(self, book: Book, labels: Mapping[str, str]) -> Rate | None:
        """What its node says it costs; if that has no price, what the job says."""
        try:
            return self._tariff.rate(labels)
        except ConfigError as error:
            usual = self._tariff.rate({})
            text = (
                f"what a worker's node says of its price is not used: {error}. Used: {usual.said if usual else 'none'}"
            )
            if text not in self._warned:
                self._warned.add(text)
                book.say("warning", text)
            return usual

    # What it comes to ----------------------------------------------------------------------------------------------

    def used(self, now: float) -> dict[str, float]:
        """By unit: `seconds`, `joules`, and `dollars` where there is a price."""
        seconds = self._seconds + (now - self._since if self._since is not None else 0.0)
        used = {"seconds": seconds, "joules": sum(self._account.totals().joules.values())}
        dollars = self._account.dollars(now)
        if dollars is not None:
            used["dollars"] = dollars
        return {unit: max(amount, self._said.get(unit, 0.0)) for unit, amount in used.items()}

    def per_step(self, unit: str, step_s: float) -> float:
        """What a step takes that lasts `step_s` seconds, with the workers that are there; 0: not known yet."""
        per_second = {"seconds": 1.0, "joules": self._account.watts(), "dollars": self._account.per_hour() / 3600}
        return per_second[unit] * step_s

    def conclude(self, book: Book, now: float, wall: float) -> dict[str, Any]:
        """The run is over, and all workers are gone: for its last entry."""
        if not self._remembers:
            return {}  # it ended before it was known what earlier launches had used
        self.tend(book, {}, now, wall)
        return {"used": {unit: round(n, 6) for unit, n in self.used(now).items()}, "cost": self._summary()}

    def _write(self, book: Book, now: float) -> None:
        self._written = now
        book.write("cost", **{**self._account.to_json(now), **self._summary(book)})

    def _summary(self, book: Book | None = None) -> dict[str, Any]:
        totals, cost = self._account.totals(), self._tariff.cost
        joules = sum(totals.joules.values())
        said = {
            **totals.to_json(),
            "co2_g": round(joules / JOULES_PER_KWH * cost.carbon_g_per_kwh, 6),
            "carbon": f"{cost.carbon_g_per_kwh:g} g/kWh ({_carbon_source(cost)})",
            "sources": sorted(self._account.sources),
            "prices": sorted(self._account.prices),
        }
        last = book.last if book is not None else None
        if book is None:
            return said
        samples = max(0, last.samples[1] - (self._first_sample or 0)) if last is not None else 0
        tokens = {"tokens": samples * self._tokens} if self._tokens else {}
        return {"step": book.committed, "samples": samples, **tokens, **said}


def _carbon_source(cost: Cost) -> str:
    return SOURCES["carbon_g_per_kwh"] if cost.carbon_g_per_kwh == CARBON_G_PER_KWH else "cost.carbon_g_per_kwh"


def _departure(line: Line, now: float, wall: float) -> dict[str, Any]:
    """A worker's line, for the ledger."""
    totals = Totals()
    totals.add(line)
    return {
        "joined": round(wall - (now - line.joined), 3),
        "left": round(wall, 3),
        **totals.to_json(),
        "source": line.source,
        "price": line.price,
    }


def course_of(job: Job, reads: Positions | Sizes, *, after: int, entries: Iterable[Mapping[str, Any]]) -> Course:
    """The course of `job` from step `after` on. `entries`: a ledger with steps of it that were decided already."""
    unit = job.budget.spent
    if unit is None:
        return Course(reads, by="steps" if job.budget.steps is not None else "samples")
    told: dict[int, float] = {}
    committed: dict[int, float] = {}
    for entry in entries:
        if entry["kind"] == "start":
            told = {}  # another launch: nobody who was told anything lives any more
        elif entry["kind"] == "course":
            told.update((int(step), float(progress)) for step, progress in entry["decided"])
        elif entry["kind"] == "commit" and "progress" in entry:
            committed[int(entry["step"])] = float(entry["progress"])
    return SpentCourse(reads, getattr(job.budget, unit), after=after, decided={**told, **committed})
