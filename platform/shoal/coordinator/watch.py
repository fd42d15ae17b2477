"""Who is alive, who is stuck, and what an error from a member means."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from shoal.errors import CapacityError, CheckpointError, DataError, TaskError, WorkerLost
from shoal.membership.losses import Cause, Loss, explain
from shoal.membership.view import MemberId

BEATS_MISSED_S = 10.0
"""A member's courier speaks several times a second; one that was quiet for this long hangs as a process."""
GRACE_S = 3.0
"""After the first error, how long to wait for the others': the true cause may speak a little later than its victims."""

_UNRETRIED = {
    TaskError: Cause.USER_CODE,
    CheckpointError: Cause.STATE,
    DataError: Cause.DATA,
    CapacityError: Cause.CAPACITY,
}


class Pulse:
    """When each member was last heard, and when one last finished a step. Times are a monotonic clock's, passed in."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.killed: set[MemberId] = set()
        self._heard: dict[MemberId, float] = {}
        self._progress = 0.0

    def begin(self, members: Iterable[MemberId], now: float) -> None:
        """A new view begins."""
        self._heard = dict.fromkeys(members, now)
        self._progress = now

    def beat(self, member: MemberId, *, progressed: bool, now: float) -> None:
        """`member` spoke; `progressed`: it reported a step."""
        self._heard[member] = now
        if progressed:
            self._progress = now

    def silent(self, now: float) -> tuple[MemberId, ...]:
        """Members to kill: nobody finished a step for `limit_s`, and these are the ones that do not even speak.

        If all of them speak, the hang is inside the step and cannot be told apart from outside: then all.
        """
        if now - self._progress <= self.limit_s:
            return ()
        mute = tuple(m for m, at in self._heard.items() if now - at > min(BEATS_MISSED_S, self.limit_s))
        return tuple(m for m in (mute or tuple(self._heard)) if m not in self.killed)


async def outcome_of(refs: Mapping[MemberId, Any]) -> dict[MemberId, BaseException]:
    """Wait until every member has returned, or one has failed and the others had time to say why. The errors found."""

    async def wait(ref: Any) -> Any:
        return await ref

    tasks = {asyncio.ensure_future(wait(ref)): member for member, ref in refs.items()}
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    if pending:
        _, pending = await asyncio.wait(pending, timeout=GRACE_S)
    errors = {m: t.exception() for t, m in tasks.items() if t.done() and not t.cancelled()}
    for task in pending:
        task.cancel()
    return {m: e for m, e in errors.items() if e is not None}


def cause_of(error: BaseException) -> tuple[Cause, str]:
    """What one error means."""
    inner = error.cause if isinstance(error, RayTaskError) else error
    for kind, cause in _UNRETRIED.items():
        if isinstance(inner, kind):
            return cause, str(inner)
    if isinstance(inner, (WorkerLost, RayActorError)):
        return Cause.LOST, _first_line(inner)
    if isinstance(inner, (RuntimeError, OSError, RayError)):
        # Collectives raise RuntimeError (torch's DistError is one) or an operating system error when a peer is gone.
        return Cause.COLLECTIVE, _first_line(inner)
    return Cause.INTERNAL, str(error)


def classify(errors: Mapping[MemberId, BaseException], silent: Iterable[MemberId] = ()) -> Loss:
    """The one loss that explains `errors`; members in `silent` were killed because they hung."""
    hung = set(silent)
    said = {m: cause_of(e) for m, e in errors.items()}
    return explain({m: (Cause.SILENT, "") if m in hung and c is Cause.LOST else (c, t) for m, (c, t) in said.items()})


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
