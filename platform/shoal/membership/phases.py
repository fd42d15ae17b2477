"""The phases of a run and the moves between them. An illegal move is our bug and fails at once."""

from __future__ import annotations

from enum import Enum


class Phase(str, Enum):
    """What a run is doing."""

    STARTING = "starting"  # the feed and the workers are being started
    FORMING = "forming"  # the members of a new view form their group and take over the state
    RUNNING = "running"  # steps are leased and committed
    ENDING = "ending"  # the last step is leased; evaluation, checkpoint and export follow
    DONE = "done"  # the outcome is known; nothing runs any more


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.STARTING: frozenset({Phase.FORMING, Phase.STARTING, Phase.DONE}),
    Phase.FORMING: frozenset({Phase.RUNNING, Phase.STARTING, Phase.DONE}),
    Phase.RUNNING: frozenset({Phase.ENDING, Phase.STARTING, Phase.DONE}),
    Phase.ENDING: frozenset({Phase.STARTING, Phase.DONE}),
    Phase.DONE: frozenset(),
}


def move(now: Phase, to: Phase) -> Phase:
    """`to`, if the table allows it."""
    assert to in MOVES[now], f"illegal move {now.value} -> {to.value}; legal: {sorted(p.value for p in MOVES[now])}"
    return to
