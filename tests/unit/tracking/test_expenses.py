"""The account of energy and money: nothing is counted twice, nothing that a meter saw is forgotten."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.tracking.expenses import PHASES, USEFUL, WASTED, Expenses, phase_of, split

pytestmark = pytest.mark.unit

Move = tuple[str, int, float, float, str]
moves = st.lists(
    st.tuples(
        st.sampled_from(["join", "hear", "hear", "hear", "mute", "leave", "lose", "restart"]),
        st.integers(0, 2),
        st.floats(0.0, 5.0),
        st.floats(0.0, 100.0),
        st.sampled_from(PHASES),
    ),
    max_size=40,
)


@dataclass
class World:
    """Meters as they are, beside the account of them."""

    account: Expenses = field(default_factory=Expenses)
    now: float = 0.0
    meters: dict[str, float] = field(default_factory=dict)
    """Of the workers that are there."""
    heard: dict[str, float] = field(default_factory=dict)
    """What the account has last been told."""
    since: dict[str, float] = field(default_factory=dict)
    told: float = 0.0
    """Joules that some meter has shown to the account."""
    lived: float = 0.0
    """Seconds that workers which are gone were there."""
    extrapolated: float = 0.0
    count: int = 0

    def play(self, move: Move) -> None:
        what, pick, took, joules, phase = move
        self.now += took
        if what == "restart":
            # Through the ledger's text, as a coordinator that is started again reads it.
            said = json.loads(json.dumps(self.account.to_json(self.now)))
            self.account = Expenses.from_json(said, self.now)
            return
        if what == "join":
            name = f"w{self.count}"
            self.count += 1
            self.account.join(name, self.now)
            self.account.price(name, 3600.0, "a dollar a second")
            self.meters[name], self.heard[name], self.since[name] = 0.0, 0.0, self.now
            return
        if not self.meters:
            return
        name = sorted(self.meters)[pick % len(self.meters)]
        self.meters[name] += joules
        if what == "hear":
            self.told += self.meters[name] - self.heard[name]
            self.heard[name] = self.meters[name]
            self.account.hear(name, self.meters[name], "rapl", phase, self.now)
        elif what in ("leave", "lose"):
            before = sum(self.account.totals().joules.values())
            self.account.leave(name, self.now, lost=what == "lose")
            self.extrapolated += sum(self.account.totals().joules.values()) - before
            self.lived += self.now - self.since[name]
            for each in (self.meters, self.heard, self.since):
                del each[name]


@given(moves)
def test_what_is_booked_is_what_the_meters_said(history: list[Move]) -> None:
    world = World()
    for move in history:
        world.play(move)
        totals = world.account.totals()
        # Restarts round to a millijoule.
        assert sum(totals.joules.values()) == pytest.approx(world.told + world.extrapolated, abs=1e-3 * len(history))
        assert sum(split(totals.joules)) == pytest.approx(sum(totals.joules.values()))
    here = sum(world.now - since for since in world.since.values())
    dollars = world.account.dollars(world.now)
    assert (dollars or 0.0) == pytest.approx(world.lived + here, abs=1e-2 * (len(history) + 1))


def test_a_lost_word_loses_nothing_and_a_lost_worker_is_extrapolated() -> None:
    account = Expenses()
    account.join("w0", 0.0)
    for second in (1, 2, 3, 5, 6):  # the word of second 4 did not arrive
        account.hear("w0", 50.0 * second, "nvml", "train", float(second))
    assert account.totals().joules == {"train": 300.0}
    assert account.watts() == pytest.approx(50.0 * (1 - 2.718281828 ** (-6 / 5)))
    line = account.leave("w0", 8.0, lost=True)
    assert line.joules["lost"] == pytest.approx(2 * line.watts)
    assert line.seconds == {"train": 6.0, "lost": 2.0}
    account.hear("w0", 1e6, "nvml", "train", 9.0)  # a late word of one that is gone
    assert sum(account.totals().joules.values()) == pytest.approx(300.0 + 2 * line.watts)


def test_money_is_counted_from_the_start_of_a_worker_to_its_end_to_the_second() -> None:
    account = Expenses()
    account.join("w0", 0.0)
    account.join("w1", 10.0)
    assert account.dollars(20.0) is None
    account.price("w0", 7200.0, "two dollars a second")
    assert account.dollars(20.0) == 40.0
    assert account.per_hour() == 7200.0
    account.hear("w0", 1.0, "rapl", "regroup", 25.0)
    line = account.leave("w0", 30.0)
    assert line.dollars() == {"regroup": 60.0}  # what came after its last word is of the phase that it was in
    assert account.dollars(99.0) == 60.0


@pytest.mark.parametrize(
    ("doing", "entered", "again", "phase"),
    [
        ("compute", True, False, "train"),
        ("data", True, False, "train"),
        ("update", True, True, "recompute"),
        ("evaluate", True, True, "evaluate"),
        ("export", True, False, "checkpoint"),
        ("data", False, False, "regroup"),
        ("", True, False, "regroup"),
    ],
)
def test_what_a_member_does_is_a_phase(doing: str, entered: bool, again: bool, phase: str) -> None:
    assert phase_of(doing, entered=entered, again=again) == phase
    assert phase in (*USEFUL, *WASTED)
