"""What to do when a view breaks. Pure: causes in, a decision with its reason out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from shoal.membership.view import MemberId


class Cause(str, Enum):
    """Why a member left the view without being asked, worst for the run first."""

    USER_CODE = "error in the task"  # would come back on every attempt: never retried, as the next four
    STATE = "checkpoint cannot be used"
    DATA = "data cannot be read"
    CAPACITY = "not enough capacity"
    INTERNAL = "error in Shoal"  # our bug; its traceback is what helps
    LOST = "worker lost"  # its process or node died
    SILENT = "worker silent"  # no step within its deadline; it was killed
    COLLECTIVE = "collective broke"  # what the peers of a lost member see


NEVER_RETRIED = frozenset({Cause.USER_CODE, Cause.STATE, Cause.DATA, Cause.CAPACITY, Cause.INTERNAL})


@dataclass(frozen=True, slots=True)
class Restart:
    """Start workers again and go on from the last durable checkpoint."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """End the run."""

    reason: str


@dataclass(frozen=True, slots=True)
class Loss:
    """One broken view: who, why, and the text of the error that explains the others."""

    cause: Cause
    members: tuple[MemberId, ...]
    text: str


def explain(errors: Mapping[MemberId, tuple[Cause, str]]) -> Loss:
    """The one loss behind several members' errors.

    A user error explains everything, and one lost member explains the collective errors of its peers. A collective
    error alone means that the loss was not seen by anybody, for example a network cut.
    """
    assert errors, "a view breaks only if somebody failed"
    for cause in Cause:
        found = [m for m, (c, _) in errors.items() if c is cause]
        if found:
            return Loss(cause, tuple(found), errors[found[0]][1])
    raise AssertionError("every cause is in the enumeration")


def after_loss(loss: Loss, *, used: int, max_failures: int) -> Restart | Fail:
    """Decide about a loss. `used` counts the losses before this one; `max_failures` as in ray.train.FailureConfig."""
    who = ", ".join(loss.members)
    if loss.cause in NEVER_RETRIED:
        return Fail(f"{loss.cause.value} on {who}:\n{loss.text}")
    what = f"{loss.cause.value}: {who}" + (f" ({loss.text})" if loss.text else "")
    if max_failures >= 0 and used >= max_failures:
        return Fail(f"{what}; failures.max_failures={max_failures} allows no further restart")
    left = "no limit" if max_failures < 0 else f"restart {used + 1} of {max_failures}"
    return Restart(f"{what}; {left}")
