"""The table of moves: complete, connected, and strict."""

from __future__ import annotations

import pytest

from shoal.membership.phases import MOVES, Phase, move

pytestmark = pytest.mark.unit


def test_every_phase_has_its_moves_and_an_illegal_one_fails() -> None:
    assert set(MOVES) == set(Phase)
    assert move(Phase.STARTING, Phase.FORMING) is Phase.FORMING
    with pytest.raises(AssertionError, match="illegal move done -> running"):
        move(Phase.DONE, Phase.RUNNING)


def test_from_every_phase_the_run_can_end() -> None:
    assert all(Phase.DONE in moves for phase, moves in MOVES.items() if phase is not Phase.DONE)


def test_after_a_view_something_is_decided_before_the_next_is_formed() -> None:
    for phase in (Phase.RUNNING, Phase.ENDING):
        assert Phase.FORMING not in MOVES[phase]
        assert Phase.DECIDING in MOVES[phase]
