"""Views: who takes part, in which order, and which part of a step each member does. Pure: no clock, Ray or torch."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.membership.course import Course

MemberId = str
"""Name of one worker incarnation, for example `w3`. Never used again after that worker is gone."""


@dataclass(frozen=True, slots=True)
class View:
    """A numbered, ordered list of members. Everything collective happens inside one view."""

    number: int
    members: tuple[MemberId, ...]
    cuts: tuple[int, ...] | None = None
    """Where each member's virtual shards begin, and where the last one's end; None: an even division."""

    @property
    def size(self) -> int:
        return len(self.members)

    def rank(self, member: MemberId) -> int:
        """Place of `member` in the view; raises ValueError for a stranger."""
        return self.members.index(member)

    def shards(self, member: MemberId, virtual_shards: int) -> range:
        """The contiguous virtual shards of `member`: [r*V/n, (r+1)*V/n) unless `cuts` says otherwise."""
        cuts = self.bounds(virtual_shards)
        r = self.rank(member)
        return range(cuts[r], cuts[r + 1])

    def divided(self, virtual_shards: int) -> dict[MemberId, range]:
        """The virtual shards of each member, all at once."""
        cuts = self.bounds(virtual_shards)
        return {m: range(cuts[r], cuts[r + 1]) for r, m in enumerate(self.members)}

    def bounds(self, virtual_shards: int) -> tuple[int, ...]:
        """`cuts`, or those of an even division: size + 1 numbers from 0 to `virtual_shards`."""
        if self.cuts is not None:
            return self.cuts
        return tuple(r * virtual_shards // self.size for r in range(self.size + 1))


@dataclass(frozen=True, slots=True)
class Lease:
    """The coordinator's word to a member: in view `view`, do virtual shards `shards` of step `step`.

    `start` and `stop` bound the member's samples as positions in the endless stream of the job's epochs; they are its
    virtual shards' samples, in order. The flags say what to do after the step; all members of a view get the same ones
    for the same step.
    """

    view: int
    step: int
    shards: tuple[int, int]
    start: int
    stop: int
    evaluate: bool = False
    checkpoint: bool = False
    snapshot: bool = False
    progress: tuple[float, float] = (0.0, 0.0)
    """Share of the budget that is used before the step, and when it is done: what the learning rate follows."""
    places: int | None = None
    """Samples of each virtual shard that are trained on; None: all that are read."""

    @property
    def shard_size(self) -> int:
        """Samples of each virtual shard that are trained on."""
        first, last = self.shards
        return self.places or (self.stop - self.start) // (last - first)


def lease(view: int, mine: range, step: int, *, course: Course, virtual_shards: int) -> Lease:
    """The lease of the virtual shards `mine` for `step` (the first step is 1): a function of the view and the course
    alone."""
    first, stop = course.of(step)
    per_shard = (stop - first) // virtual_shards
    return Lease(
        view=view,
        step=step,
        shards=(mine.start, mine.stop),
        start=first + mine.start * per_shard,
        stop=first + mine.stop * per_shard,
        progress=(course.progress(step - 1), course.progress(step)),
        places=course.batch(step) // virtual_shards,
    )
