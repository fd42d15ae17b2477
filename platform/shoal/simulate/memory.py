"""What a run keeps in the memory of its workers, in the terms of `membership.recovery`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from shoal.membership.messages import Fresh, Held, Stored, ViewEnd
from shoal.membership.recovery import Choice, Formed, sources
from shoal.membership.view import MemberId, View


@dataclass(slots=True)
class Memory:
    """The newest state that lies whole in memory."""

    sharded: bool
    formed: list[Formed] = field(default_factory=list)
    """The views since that state was made."""
    _view: View | None = None
    _step: int = 0
    _keepers: Mapping[MemberId, MemberId] = field(default_factory=dict)

    def form(self, view: View, source_step: int) -> None:
        """A view goes on after `source_step`."""
        self.formed.append(Formed(view, source_step))

    def keep(self, view: View, step: int, keepers: Mapping[MemberId, MemberId]) -> None:
        """The state after `step` is with the members of `view`; sharded: and with their `keepers`."""
        self._view, self._step, self._keepers = view, step, keepers
        self.formed = [f for f in self.formed if f.view.number >= view.number]

    def choose(self, alive: Collection[MemberId], saved: int) -> Choice:
        """Where the next view's state comes from, if these workers live; `saved`: the last checkpoint."""
        step = self._step if self._view is not None else 0
        choice = sources(
            self.formed,
            self._ends(alive),
            sharded=self.sharded,
            committed=step,
            checkpoint=Stored(saved, "checkpoint") if saved else None,
        )
        assert choice is not None, "the initial weights are a state of every run"
        if isinstance(choice.state, (Fresh, Stored)):
            self._view, self._step, self.formed = None, 0, []
        return choice

    def _ends(self, alive: Collection[MemberId]) -> list[ViewEnd]:
        view = self._view
        if view is None:
            return []
        there = set(alive)
        if not self.sharded:
            return [ViewEnd(m, view.number, self._step) for m in view.members if m in there]
        held: defaultdict[MemberId, list[Held]] = defaultdict(list)
        for owner in view.members:
            for holder in {owner, self._keepers.get(owner, owner)} & there:
                held[holder].append(Held(owner, view.number, self._step))
        return [ViewEnd(m, view.number, 0, stale=True, held=tuple(h)) for m, h in held.items()]
