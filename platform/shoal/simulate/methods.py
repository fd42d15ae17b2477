"""Three ways of going on when workers come and go. One simulator plays all; only this differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.simulate.work import Work

Name = Literal["in place", "restart in place", "restart"]
METHODS: tuple[Name, ...] = ("in place", "restart in place", "restart")


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """How a run goes on, and how often it saves. Times in seconds."""

    name: Name
    checkpoint_every: int
    """Steps between durable checkpoints."""
    snapshot_every: int | None = None
    """Steps between snapshots in memory; None: as the coordinator chooses. Only in place."""

    @property
    def in_place(self) -> bool:
        """Whether those who stay keep their processes and the state stays in memory."""
        return self.name == "in place"

    def stop_s(self, work: Work, members: int, newcomers: int, *, from_memory: bool) -> float:
        """From the last word about who is there to the first step of the next view."""
        if self.in_place:
            state = work.move_s(members, newcomers) if from_memory else work.load_s(members)
            return work.regroup_s(members) + state + work.costs.resume_s
        start = work.costs.rebuild_s if self.name == "restart in place" else work.costs.restart_s
        return start + work.regroup_s(members) + work.load_s(members) + work.costs.resume_s

    def change_s(self, work: Work, members: int) -> float:
        """What a planned change costs: what `membership.decisions` weighs against its gain."""
        if self.in_place:
            return self.stop_s(work, members, 1, from_memory=True)
        return self.save_s(work, members) + self.stop_s(work, members, 1, from_memory=False)

    def save_s(self, work: Work, members: int) -> float:
        """Making the state durable while all wait for it."""
        return work.copy_s(members) + work.write_s(members)

    def saves(self, work: Work, members: int) -> tuple[int, float]:
        """What protects the last steps from one loss: (steps apart, seconds until one is safe)."""
        if not self.in_place:
            return self.checkpoint_every, work.write_s(members)
        if not work.sharded:
            return 1, 0.0
        every = self.snapshot_every or work.snapshot_every(members)
        return every, work.send_s(members)

    def overhead_s(self, work: Work, members: int) -> float:
        """Seconds that saving takes from each step, evened out."""
        saved = work.copy_s(members) / self.checkpoint_every
        if self.in_place and work.sharded:
            saved += work.snapshot_s(members) / self.saves(work, members)[0]
        return saved
