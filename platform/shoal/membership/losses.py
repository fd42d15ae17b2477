"""Why a view broke, and whether the run may go on after it. Pure: causes in, a verdict with its reason out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from shoal.membership.view import MemberId


class Cause(str, Enum):
    """Why a member left the view before its boundary, worst for the run first."""

    USER_CODE = "error in the task"  # would come back on every attempt: never retried, as the next four
    STATE = "checkpoint cannot be used"
    DATA = "data cannot be read"
    CAPACITY = "not enough capacity"
    INTERNAL = "error in Shoal"  # our bug; its traceback is what helps
    LOST = "worker lost"  # its process or node died
    SILENT = "worker silent"  # no progress within its deadline; it was killed
    PREEMPTED = "node reclaimed"  # its node was drained or taken back: nobody's bug
    REFUSED = "worker refused"  # it came with other code or another model, and never was in a view
    ASKED = "ended on request"  # somebody asked for exactly this
    COLLECTIVE = "collective broke"  # what the peers of a lost member see


NEVER_RETRIED = frozenset({Cause.USER_CODE, Cause.STATE, Cause.DATA, Cause.CAPACITY, Cause.INTERNAL})
NEVER_CHARGED = frozenset({Cause.PREEMPTED, Cause.REFUSED, Cause.ASKED})


@dataclass(frozen=True, slots=True)
class Recover:
    """Go on with the survivors."""

    reason: str
    charged: int
    """Losses charged so far, this one included where it counts. Zero again once a step has been committed after it."""


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


def after_loss(loss: Loss, *, charged: int, max_failures: int) -> Recover | Fail:
    """Decide about a loss.

    `charged`: charged losses since the last committed step, without this one. `max_failures`: how many of them the job
    bears without a step committed in between; 0: the first one ends the run; -1: no limit. A view that breaks is one
    loss, however many members it lost.
    """
    who = ", ".join(loss.members)
    if loss.cause in NEVER_RETRIED:
        return Fail(f"{loss.cause.value} on {who}:\n{loss.text}")
    what = f"{loss.cause.value}: {who}" + (f" ({loss.text})" if loss.text else "")
    if loss.cause in NEVER_CHARGED:
        return Recover(f"{what}; not charged to failures.max_failures", charged)
    if max_failures >= 0 and charged >= max_failures:
        return Fail(f"{what}; failures.max_failures={max_failures} allows no further one before a step is committed")
    left = f"; {max_failures - charged - 1} more in a row are allowed" if 0 <= max_failures <= charged + 2 else ""
    return Recover(f"{what}{left}", charged + 1)
