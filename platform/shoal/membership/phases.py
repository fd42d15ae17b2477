"""The phases of a run and the moves between them. An illegal move is our bug and fails at once."""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """What a run is doing."""

    STARTING = "starting"  # the feed and the first workers are being started, or a restarted coordinator looks around
    WAITING = "waiting"  # fewer workers than the job's least are there; the state stays in the memory of those who are
    FORMING = "forming"  # the members of a new view form their group and take over the state
    RUNNING = "running"  # steps are leased and committed
    ENDING = "ending"  # the last step of the view is leased; what its end asks for follows
    DECIDING = "deciding"  # the view is over or broken; members say what they hold, and what comes next is decided
    DONE = "done"  # the outcome is known; nothing runs any more


MOVES: dict[Phase, frozenset[Phase]] = {
    # To RUNNING and further straight away: members outlive their coordinator, and its successor adopts their view.
    Phase.STARTING: frozenset(
        {Phase.STARTING, Phase.WAITING, Phase.FORMING, Phase.RUNNING, Phase.ENDING, Phase.DECIDING, Phase.DONE}
    ),
    Phase.WAITING: frozenset({Phase.WAITING, Phase.FORMING, Phase.DONE}),
    # To ENDING straight away: a stop, or a view in which nothing is left to do.
    Phase.FORMING: frozenset({Phase.RUNNING, Phase.ENDING, Phase.DECIDING, Phase.DONE}),
    Phase.RUNNING: frozenset({Phase.ENDING, Phase.DECIDING, Phase.DONE}),
    Phase.ENDING: frozenset({Phase.DECIDING, Phase.DONE}),
    Phase.DECIDING: frozenset({Phase.WAITING, Phase.FORMING, Phase.DONE}),
    Phase.DONE: frozenset(),
}


def move(now: Phase, to: Phase) -> Phase:
    """`to`, if the table allows it."""
    assert to in MOVES[now], f"illegal move {now.value} -> {to.value}; legal: {sorted(p.value for p in MOVES[now])}"
    return to
