"""Runs that ask each other, with words that are lost, late or said twice: the rules hold, and it comes to rest."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.capacity.asks import HOLD_S, Asks
from shoal.capacity.fits import Need, Node, room
from shoal.capacity.precedence import Claim, Holding, Lack, Way, precedence

pytestmark = pytest.mark.unit

ONE = Need((("CPU", 1.0),))
ROUND_S = 2.0


def claim(run: str, priority: int, have: int, lacks: int = 0) -> Claim:
    holds = tuple(Holding(f"w{i}", "n") for i in range(have))
    lack = (Lack(ONE, lacks, False),) if lacks else ()
    return Claim(run=run, priority=priority, since=0, begun=True, least=1, need=ONE, holds=holds, lacks=lack)


def test_a_word_said_twice_changes_nothing_and_one_that_is_not_repeated_is_forgotten() -> None:
    low, high, asks = claim("low", 0, 3), claim("high", 1, 1, lacks=1), Asks()
    for now in (0.0, 2.0):
        asks.hear(low, high, Way(("w2",), "high"), now)
        assert list(asks.going(low, now)) == ["w2"]
    assert asks.live(2.0 + HOLD_S - 0.1)
    assert not asks.live(2.0 + HOLD_S)
    assert asks.going(low, 2.0 + HOLD_S) == {}


def test_who_may_not_ask_is_not_heard() -> None:
    own, asks = claim("own", 1, 3), Asks()
    asks.hear(own, claim("lower", 0, 1, lacks=1), Way(("w2",), "lower"), 0.0)
    asks.hear(own, claim("full", 2, 1), Way(("w2",), "full"), 0.0)
    assert not asks.live(0.0)


@dataclass
class Run:
    """A run of a simulated cluster, with what its coordinator knows."""

    name: str
    priority: int
    least: int
    most: int
    since: float
    workers: dict[str, str] = field(default_factory=dict)
    """name -> node"""
    leaving: dict[str, float] = field(default_factory=dict)
    """name -> when it will have gone"""
    asks: Asks = field(default_factory=Asks)
    before: dict[str, Way] = field(default_factory=dict)
    born: int = 0
    begun: bool = False

    def claim(self, now: float) -> Claim:
        staying = len(self.workers) - len(self.leaving)
        missing = 0 if self.asks.live(now) else self.most - staying
        vital = min(missing, max(0, self.least - staying))
        lacks = (Lack(ONE, vital, True), Lack(ONE, missing - vital, False))
        return Claim(
            run=self.name, priority=self.priority, since=self.since, begun=self.begun, least=self.least, need=ONE,
            holds=tuple(Holding(w, n, w in self.leaving) for w, n in self.workers.items()),
            lacks=tuple(x for x in lacks if x.count > 0),
        )  # fmt: skip


class World:
    """Nodes of some places each; every second a second passes."""

    def __init__(self, rng: random.Random, runs: list[Run], places: dict[str, int], lost: float) -> None:
        self.rng, self.runs, self.places, self.lost, self.now, self.moves = rng, runs, places, lost, 0.0, 0

    def nodes(self) -> list[Node]:
        used = {n: sum(w == n for r in self.runs for w in r.workers.values()) for n in self.places}
        return [Node(n, {"CPU": k}, {"CPU": k - used[n]}, {}) for n, k in self.places.items()]

    def second(self) -> None:
        self.now += 1.0
        for run in self.runs:
            for worker in [w for w, at in run.leaving.items() if at <= self.now]:
                del run.leaving[worker], run.workers[worker]
        self.grant()
        for run in self.runs:
            own = run.claim(self.now)
            for worker, asker in run.asks.going(own, self.now).items():
                if worker not in run.leaving:
                    self.moves += 1
                    run.leaving[worker] = self.now + self.rng.choice([0, 1, 3])
                    below = len(run.workers) - len(run.leaving) < run.least
                    assert not below or any(x.vital for x in asker.lacks), "only for one that cannot run otherwise"
                    assert asker.priority > run.priority or not run.begun
        if self.now % ROUND_S == 0:
            for run in self.runs:
                self.look_around(run)

    def grant(self) -> None:
        """Ray grants in the order of asking, which is nobody's priority."""
        for run in self.rng.sample(self.runs, len(self.runs)):
            for _ in range(sum(x.count for x in run.claim(self.now).lacks)):
                free = [n for n in self.nodes() if room(n, ONE, empty=False)]
                if free:
                    run.workers[f"w{run.born}"], run.born = free[0].id, run.born + 1
            run.begun = run.begun or len(run.workers) - len(run.leaving) >= run.least

    def look_around(self, run: Run) -> None:
        own = run.claim(self.now)
        if not own.lacks:
            run.before = {}
            return
        others = [r for r in self.runs if r is not run and self.rng.random() >= self.lost]
        ways = precedence(self.nodes(), [own, *(r.claim(self.now) for r in others)])
        for other in others:
            way, before = ways.get(other.name), run.before.get(other.name)
            if way is None or before is None or self.rng.random() < self.lost:
                continue
            sure = Way(tuple(w for w in way.workers if w in before.workers), way.run)
            for _ in range(self.rng.choice([1, 1, 2])):
                other.asks.hear(other.claim(self.now), own, sure, self.now)
        run.before = {name: way for name, way in ways.items() if name != run.name}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([0.0, 0.3]))
def test_any_history_comes_to_the_same_division(seed: int, lost: float) -> None:
    rng = random.Random(seed)
    runs = []
    for i in range(rng.randint(2, 4)):
        least = rng.randint(1, 3)
        runs.append(Run(f"r{i}", rng.randint(0, 2), least, least + rng.randint(0, 4), float(i)))
    places = {f"n{i}": rng.randint(1, 4) for i in range(rng.randint(1, 3))}
    world = World(rng, runs[:1], places, lost)
    for run in runs[1:]:  # one after another they come
        for _ in range(rng.randint(0, 40)):
            world.second()
        world.runs.append(run)
    for _ in range(120):
        world.second()
    settled = world.moves
    for _ in range(80):
        world.second()
    have = {r.name: len(r.workers) - len(r.leaving) for r in runs}
    assert world.moves - settled <= 2 * len(runs), f"they go on moving workers: {world.moves - settled} times"
    top = max(runs, key=lambda r: (r.priority, -r.since))
    others = [r for r in runs if r.priority < top.priority]
    takeable = sum(max(0, have[r.name] - r.least) for r in others)
    assert have[top.name] == top.most or takeable == 0, "the first is served before others have more than they need"
    total = sum(places.values())
    if total >= top.least and all(r.priority < top.priority for r in runs if r is not top):
        assert have[top.name] >= top.least
