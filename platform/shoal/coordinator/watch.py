"""Who is alive, who is stuck, and what an error from a member means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ray.exceptions import RayActorError, RayError, RayTaskError

from shoal.errors import CapacityError, CheckpointError, DataError, TaskError, WorkerLost, WorkerRefused
from shoal.membership.leasing import beat_s
from shoal.membership.losses import Cause
from shoal.membership.messages import Progress
from shoal.membership.view import MemberId

ASLEEP_S = 1.0
"""Looks are more frequent: if there was none for so long, it was the coordinator that did not run."""
BEATS_MISSED_S = 5.0
"""A member's courier speaks twice a second; one that was quiet for this long hangs as a process."""
BEATS_MISSED = 4.0
"""Among so many members that they speak less often: so many beats."""
STEPS_MISSED = 20.0
"""A step may take this many times as long as steps do before it counts as stuck."""
FLOOR_S = 10.0
"""No step counts as stuck sooner than this."""
WARM_S = 60.0
"""What members that are warm may take to form a view, come by the state and do its first step."""
SLOW = frozenset({"evaluate", "checkpoint", "export", "state"})
"""Work whose length says nothing about the length of a step: only `silence_s` bounds it."""

_KNOWN = {
    TaskError: Cause.USER_CODE,
    CheckpointError: Cause.STATE,
    DataError: Cause.DATA,
    CapacityError: Cause.CAPACITY,
    WorkerRefused: Cause.REFUSED,
}


@dataclass(slots=True)
class _Heard:
    at: float
    moved: float
    progress: Progress


class Pulse:
    """When each member of a view was last heard, and when it last got on. Times are a monotonic clock's, passed in."""

    def __init__(self, silence_s: float, *, cold: bool = False) -> None:
        """`cold`: what the members do before their first commit may take long, up to `silence_s`."""
        self._silence_s = silence_s
        self._first_s = silence_s if cold else min(silence_s, WARM_S)
        self._members: dict[MemberId, _Heard] = {}
        self._looked = 0.0

    def begin(self, members: Iterable[MemberId], now: float) -> None:
        """A new view begins."""
        self._members = {m: _Heard(now, now, Progress()) for m in members}
        self._looked = now

    def beat(self, member: MemberId, progress: Progress, now: float) -> None:
        """`member` spoke."""
        heard = self._members.get(member)
        if heard is None:
            return
        heard.at = now
        if progress != heard.progress:
            heard.moved, heard.progress = now, progress

    def progress(self, member: MemberId) -> Progress:
        """Where `member` said it was."""
        return self._members[member].progress

    @property
    def last_moved(self) -> float:
        """When anybody last got on."""
        return max(h.moved for h in self._members.values())

    def limit(self, step_s: float | None) -> float:
        """How long nobody may get on, when a step takes `step_s` seconds; None: this view has committed none yet."""
        if any(h.progress.doing in SLOW for h in self._members.values()):
            return self._silence_s
        if step_s is None:
            return self._first_s
        return min(self._silence_s, max(FLOOR_S, STEPS_MISSED * step_s))

    def stuck(self, now: float, step_s: float | None) -> dict[MemberId, str] | None:
        """None: the view gets on. Else members to cut out, each with what was seen of it: they hold up all others.
        Empty: nothing tells them apart. Looked at several times a second.

        Nobody has got on for `limit`. The cause is whoever does not even speak; else who still waits for its samples,
        or still computes, while others wait for it in the update. Members that all wait for each other may have lost
        sight of each other, and if no one of several speaks it may be the coordinator whom nobody reaches.
        """
        self._forgive(now)
        limit = self.limit(step_s)
        if not self._members or now - self.last_moved <= limit:
            return None
        quiet = max(BEATS_MISSED_S, BEATS_MISSED * beat_s(len(self._members)))
        mute = {m: h for m, h in self._members.items() if now - h.at > min(quiet, limit)}
        if len(mute) == len(self._members) > 1 and now - self.last_moved <= self._silence_s:
            return None
        return {m: _seen(h, now, limit, mute=m in mute) for m, h in (mute or self._behind()).items()}

    def _forgive(self, now: float) -> None:
        """While the coordinator itself did not run, nobody could be heard."""
        asleep, self._looked = now - self._looked - ASLEEP_S, now
        for heard in self._members.values() if asleep > 0 else ():
            heard.at, heard.moved = (min(now, t + asleep) for t in (heard.at, heard.moved))

    def _behind(self) -> dict[MemberId, _Heard]:
        if len(self._members) == 1:
            return self._members
        first = min(h.progress.step for h in self._members.values())
        late = {m: h for m, h in self._members.items() if h.progress.step == first}
        for doing in ("data", "compute"):
            stuck = {m: h for m, h in late.items() if h.progress.doing == doing}
            if stuck and len(stuck) < len(self._members):
                return stuck
        return {}


def _seen(heard: _Heard, now: float, limit: float, *, mute: bool) -> str:
    where = f"in step {heard.progress.step} ({heard.progress.doing or 'entering the view'})"
    if mute:
        return f"did not speak for {now - heard.at:.1f}s, last {where}"
    return f"made no progress for {now - heard.moved:.1f}s {where}; its deadline is {limit:g}s"


def cause_of(error: BaseException) -> tuple[Cause, str]:
    """What one error means."""
    inner = error.cause if isinstance(error, RayTaskError) else error
    for kind, cause in _KNOWN.items():
        if isinstance(inner, kind):
            return cause, str(inner)
    if isinstance(inner, RayActorError) and inner.preempted:
        return Cause.PREEMPTED, first_line(inner)
    if isinstance(inner, (WorkerLost, RayActorError)):
        return Cause.LOST, first_line(inner)
    if isinstance(inner, (RuntimeError, OSError, RayError)):
        # Collectives raise RuntimeError (torch's DistError is one) or an operating system error when a peer is gone.
        return Cause.COLLECTIVE, first_line(inner)
    return Cause.INTERNAL, str(error)


def first_line(error: BaseException) -> str:
    """What fits on a line."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
