"""Each failure is charged to its cause."""

from __future__ import annotations

import pytest

from shoal.membership.losses import NEVER_RETRIED, Cause, Fail, Loss, Restart, after_loss, explain
from shoal.membership.phases import MOVES, Phase, move

pytestmark = pytest.mark.unit


def test_one_lost_member_explains_the_collective_errors_of_its_peers() -> None:
    loss = explain({"a": (Cause.COLLECTIVE, "reset by peer"), "b": (Cause.LOST, "died"), "c": (Cause.COLLECTIVE, "x")})
    assert loss == Loss(Cause.LOST, ("b",), "died")


def test_a_user_error_explains_everything() -> None:
    loss = explain({"a": (Cause.LOST, "died"), "b": (Cause.USER_CODE, "ZeroDivisionError")})
    assert loss.cause is Cause.USER_CODE


@pytest.mark.parametrize("cause", sorted(NEVER_RETRIED))
def test_what_would_come_back_is_never_retried(cause: Cause) -> None:
    verdict = after_loss(Loss(cause, ("a",), "boom"), used=0, max_failures=-1)
    assert isinstance(verdict, Fail)
    assert "boom" in verdict.reason


@pytest.mark.parametrize(
    ("used", "allowed", "kind"), [(0, 0, Fail), (0, 1, Restart), (1, 1, Fail), (99, -1, Restart), (2, 3, Restart)]
)
def test_losses_are_retried_as_often_as_the_job_allows(used: int, allowed: int, kind: type) -> None:
    verdict = after_loss(Loss(Cause.LOST, ("w1",), "gone"), used=used, max_failures=allowed)
    assert isinstance(verdict, kind)
    assert "w1" in verdict.reason


def test_every_phase_has_its_moves_and_an_illegal_one_fails() -> None:
    assert set(MOVES) == set(Phase)
    assert move(Phase.STARTING, Phase.FORMING) is Phase.FORMING
    with pytest.raises(AssertionError, match="illegal move done -> running"):
        move(Phase.DONE, Phase.RUNNING)
