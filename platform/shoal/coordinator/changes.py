"""What a change of the view cost, told when the first step of the new one is committed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.membership.messages import Entered
from shoal.membership.view import MemberId, View


@dataclass(slots=True)
class Change:
    """One change under way. Times are those of `time.monotonic`."""

    before: View
    seen_at: float
    """The first sign of it; of a hang: when that member last got on."""
    out_at: float
    """All members were out of the old view."""
    applied: int
    """The last step that somebody had applied."""
    lost: Mapping[MemberId, str]
    """Members that were lost: `loss` or `hang`."""
    after: View | None = None
    source_step: int = 0
    entered_at: float | None = None
    entered: dict[MemberId, Entered] = field(default_factory=dict)

    def into(self, view: View, source_step: int) -> None:
        """The view that follows."""
        self.after, self.source_step, self.entered_at = view, source_step, None

    def all_in(self, entered: Mapping[MemberId, Entered]) -> None:
        """All members have formed the new view and hold the state."""
        if self.entered_at is None:
            self.entered_at, self.entered = time.monotonic(), dict(entered)

    @property
    def idle_s(self) -> float:
        """Seconds in which the survivors did no step."""
        return max((e.idle_s for e in self.entered.values()), default=0.0)

    def entries(self, step: int) -> list[dict[str, Any]]:
        """Ledger entries, one per cause; `step` is the first one that was committed after it."""
        assert self.after is not None, "nothing is committed before a view follows"
        assert self.entered_at is not None, "nothing is committed before all are in"
        state = max(e.state_s for e in self.entered.values())
        costs = {
            "detect_s": self.out_at - self.seen_at if self.lost else 0.0,
            "regroup_s": max(0.0, self.entered_at - self.out_at - state),
            "state_s": state,
            "resume_s": time.monotonic() - self.entered_at,
            "idle_s": self.idle_s,
        }
        rounded = {name: round(seconds, 4) for name, seconds in costs.items()}
        redone = max(0, self.applied - self.source_step)
        common = {"view": self.after.number, "step": step, **rounded, "workers": self.after.size}
        return [
            {"kind": "change", "what": what, "members": list(members), **common, "steps_redone": redone}
            for what, members in self._causes()
            if members
        ]

    def _causes(self) -> Iterable[tuple[str, Sequence[MemberId]]]:
        assert self.after is not None
        old, new = self.before.members, self.after.members
        for what in ("loss", "hang"):
            yield what, [m for m, how in self.lost.items() if how == what]
        yield "leave", [m for m in old if m not in new and m not in self.lost]
        yield "join", [m for m in new if m not in old]
