"""Each failure is charged to its cause."""

from __future__ import annotations

import pytest

from shoal.membership.losses import NEVER_CHARGED, NEVER_RETRIED, Cause, Fail, Loss, Recover, after_loss, explain

pytestmark = pytest.mark.unit


def test_one_lost_member_explains_the_collective_errors_of_its_peers() -> None:
    loss = explain({"a": (Cause.COLLECTIVE, "reset by peer"), "b": (Cause.LOST, "died"), "c": (Cause.COLLECTIVE, "x")})
    assert loss == Loss(Cause.LOST, ("b",), "died")


def test_a_user_error_explains_everything() -> None:
    loss = explain({"a": (Cause.LOST, "died"), "b": (Cause.USER_CODE, "ZeroDivisionError")})
    assert loss.cause is Cause.USER_CODE


def test_a_reclaimed_node_does_not_hide_a_crash() -> None:
    assert explain({"a": (Cause.PREEMPTED, ""), "b": (Cause.LOST, "died")}).cause is Cause.LOST
    assert explain({"a": (Cause.PREEMPTED, ""), "b": (Cause.COLLECTIVE, "")}).cause is Cause.PREEMPTED


@pytest.mark.parametrize("cause", sorted(NEVER_RETRIED))
def test_what_would_come_back_is_never_retried(cause: Cause) -> None:
    verdict = after_loss(Loss(cause, ("a",), "boom"), charged=0, max_failures=-1)
    assert isinstance(verdict, Fail)
    assert "boom" in verdict.reason


@pytest.mark.parametrize(
    ("charged", "allowed", "kind"), [(0, 0, Fail), (0, 1, Recover), (1, 1, Fail), (99, -1, Recover), (2, 3, Recover)]
)
def test_losses_are_borne_as_often_as_the_job_allows(charged: int, allowed: int, kind: type) -> None:
    verdict = after_loss(Loss(Cause.LOST, ("w1",), "gone"), charged=charged, max_failures=allowed)
    assert isinstance(verdict, kind)
    assert "w1" in verdict.reason
    if isinstance(verdict, Recover):
        assert verdict.charged == charged + 1


@pytest.mark.parametrize("cause", sorted(NEVER_CHARGED))
def test_what_nobody_did_wrong_is_not_charged(cause: Cause) -> None:
    verdict = after_loss(Loss(cause, ("w1",), ""), charged=2, max_failures=0)
    assert isinstance(verdict, Recover)
    assert verdict.charged == 2


def test_every_cause_has_one_rule() -> None:
    charged = {Cause.LOST, Cause.SILENT, Cause.COLLECTIVE}
    assert NEVER_RETRIED.isdisjoint(NEVER_CHARGED)
    assert charged | NEVER_RETRIED | NEVER_CHARGED == set(Cause)
