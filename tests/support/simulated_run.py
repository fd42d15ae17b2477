"""Simulated runs: random or given disasters, played through the real decisions of `shoal.membership`.

`simulate(scenario)` plays one history to its end and raises AssertionError, with the history, if a promise is broken.
Only the coordinator's glue is mirrored (`simulated_coordinator`); leases, commits, sources and decisions are the real
ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from random import Random

from tests.support.simulated_coordinator import Coordinator
from tests.support.simulated_workers import Worker
from tests.support.simulated_world import Event, Ledger, Scenario, World

PATIENCE = 400.0
"""Time units (about one step each) after the last event within which every run must come to its end."""
SPACE = 30.0
"""Time units in which any one loss or change is over and done with."""
DRAIN = 25.0
"""So long after its notice a worker is taken away, gone or not."""

KINDS = (
    "join",
    "leave",
    "leave for good",
    "kill",
    "kill two",
    "kill with buddy",
    "kill while forming",
    "hang",
    "restart",
    "everyone",
    "starve",
    "starve by leaves",
    "limits",
    "stop",
)
WEIGHTS = (4, 5, 4, 8, 3, 4, 5, 4, 5, 1, 2, 2, 3, 1)
ONE_LOSS = ("kill", "hang")
NO_LOSS = ("join", "leave", "leave with buddy", "everyone leaves", "limits", "restart")


@dataclass(frozen=True)
class History:
    """What a simulated run left."""

    status: str
    ledger: Ledger
    redone: int
    log: list[str]
    took: float
    """Time units."""


def random_scenario(seed: int) -> Scenario:
    """Anything may happen at any time."""
    random = Random(seed)
    least = random.randint(1, 3)
    total = random.randint(3, 12)
    events = [
        Event(round(random.uniform(0.0, 2.0 * total), 1), random.choices(KINDS, WEIGHTS)[0], random.randrange(100))
        for _ in range(random.randint(0, 10))
    ]
    return Scenario(
        seed=seed,
        sharded=random.random() < 0.6,
        least=least,
        most=least + random.randint(0, 3),
        total_steps=total,
        virtual_shards=random.choice((4, 6, 8)),
        snapshot_every=random.choice((1, 1, 2, 4)),
        checkpoint_every=random.choice((None, 3, 5)),
        evaluate_every=random.choice((None, 2, 3)),
        max_failures=random.choice((-1, -1, -1, -1, 0, 2)),
        nodes=random.choice((1, 2, 3, 5)),
        uneven=random.random() < 0.2,
        budget=random.uniform(2.0, 30.0) if random.random() < 0.25 else None,
        events=tuple(sorted(events)),
    )


def spaced_scenario(seed: int, kinds: tuple[str, ...]) -> Scenario:
    """One thing at a time, each long after the one before has been dealt with."""
    random = Random(seed)
    times = [12.0 + SPACE * i + round(random.uniform(0.0, 5.0), 1) for i in range(3)]
    return replace(
        random_scenario(seed),
        least=2,
        most=4,
        total_steps=int(SPACE * 3),
        virtual_shards=8,
        max_failures=-1,
        uneven=False,
        budget=None,
        events=tuple(Event(at, random.choice(kinds), random.randrange(100)) for at in times),
    )


def simulate(scenario: Scenario) -> History:
    """Play it; raises AssertionError if a promise is broken or the run does not come to its end."""
    world = World(scenario, Coordinator)
    try:
        _play(world)
        _check_end(world)
    except AssertionError as error:
        told = "\n".join(world.log)
        raise AssertionError(f"{error}\n{scenario}\nat {world.now:.2f}, ledger {world.ledger}\n{told}") from error
    assert world.outcome is not None
    return History(world.outcome.status, world.ledger, world.redone, world.log, world.now)


def _play(world: World) -> None:
    world.after(0.0, world.start)
    last = 0.0
    for event in world.scenario.events:
        world.after(event.at, partial(_strike, world, event))
        last = max(last, event.at)

    def calm() -> None:
        """From here on nothing bad happens, and there are workers enough."""
        world.capacity = world.scenario.most
        world.ledger.limits = (world.scenario.least, world.scenario.most)
        world.kill_forming.clear()

    world.after(last + 1.0, calm)
    world.run(last + PATIENCE)


def _check_end(world: World) -> None:
    scenario, ledger = world.scenario, world.ledger
    assert world.outcome is not None, "the run does not come to its end"
    status, total = world.outcome.status, len(ledger.commits)
    if status == "failed":
        assert scenario.max_failures >= 0, "failed, though any loss is to be borne"
    elif status == "stopped":
        assert ledger.stop is not None
    else:
        assert scenario.budget is not None or total == scenario.total_steps
        assert ledger.progress[total] == 1.0
        assert ledger.checkpoints[total] == tuple(ledger.commits)
        assert not world.plan.can_evaluate or total in ledger.evaluations
        assert world.exported


# Disasters -----------------------------------------------------------------------------------------------------------


def _strike(world: World, event: Event) -> None:
    world.note(f"* {event.kind}")
    pick, kind = event.pick, event.kind
    if kind == "join":
        world.capacity += 1
    elif kind == "restart":
        world.lose_coordinator()
    elif kind == "stop":
        world.ledger.stop = "asked to"
        world.tell(lambda coordinator: coordinator.on_stop("asked to"))
    elif kind == "limits":
        least = 1 + pick % 4
        world.ledger.limits = (least, least + pick // 4 % 3)
    elif kind == "kill while forming":
        world.kill_forming.append(pick)
    elif kind in ("starve", "starve by leaves", "everyone leaves"):
        left = 0 if kind == "everyone leaves" else world.ledger.limits[0] - 1
        _starve(world, left, pick, kill=kind == "starve")
    elif kind == "everyone":
        for worker in world.alive():
            world.kill(worker, "everything is lost")
    else:
        _strike_workers(world, kind, pick)


def _strike_workers(world: World, kind: str, pick: int) -> None:
    targets = [w for w in world.alive() if w.ready and w.leaving is None]
    if not targets:
        return
    target = targets[pick % len(targets)]
    if kind == "hang":
        target.hung = True
        return
    buddy = target.life.order.buddy if target.life is not None else None
    if kind in ("leave", "leave for good", "leave with buddy"):
        world.capacity -= kind == "leave for good"
        with_it = [world.workers[buddy]] if kind == "leave with buddy" and buddy is not None else []
        _announce(world, [target, *with_it])
    else:
        world.kill(target, kind)
        others = [w for w in targets if w is not target]
        if kind == "kill two" and others:
            world.kill(others[pick // 7 % len(others)], kind)
        if kind == "kill with buddy" and buddy is not None:
            delay = 0.0 if pick % 2 else world.random.uniform(0.0, 5.0)
            world.after(delay, lambda: world.kill(world.workers[buddy], kind))


def _announce(world: World, leavers: list[Worker]) -> None:
    for worker in leavers:
        worker.leaving = "drain notice"
        world.after(DRAIN, partial(world.kill, worker, "its node is gone"))
    world.tell(lambda coordinator: coordinator.on_news())


def _starve(world: World, left: int, pick: int, *, kill: bool) -> None:
    """Only `left` workers for a while."""
    world.capacity = left
    there = [w for w in world.alive() if w.leaving is None]
    for worker in [w for w in there[left:] if kill or not w.ready]:
        world.kill(worker, "starve")
    _announce(world, [w for w in there[left:] if w.alive])

    def feed() -> None:
        world.capacity = world.scenario.most

    # With nobody left, longer than anybody who was told to go can wait for others to take over the state.
    world.after(1.0 + pick % 20 if left else DRAIN + 1.0, feed)
