"""What a simulated run came to, and how often it should have saved."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

from shoal.simulate.account import Spent
from shoal.simulate.intervals import daly, steps_of, young
from shoal.simulate.methods import METHODS, Method, Name
from shoal.simulate.play import Play, Setting

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Interval:
    """How often to save something."""

    save_s: float
    """What one takes from the training."""
    between_s: float
    """Mean time between two losses that it protects from."""
    young_s: float
    daly_s: float
    steps: int
    """The latter in steps."""

    @classmethod
    def of(cls, save_s: float, between_s: float, step_s: float, least: int = 1) -> Interval:
        """The optimum, of `least` steps or more."""
        best = daly(save_s, between_s)
        return cls(save_s, between_s, young(save_s, between_s), best, max(least, steps_of(best, step_s)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One method under one trace."""

    method: Name
    available: float
    """Worker-seconds from the workers' coming to their going."""
    spent: Spent
    steps: int
    """Done, and part of the run at its end."""
    steps_redone: int
    losses: int
    """Nodes lost without notice."""
    views: int
    from_storage: int
    """Times that the state had to come from a checkpoint (or from the beginning) after a loss."""
    longest_stop_s: float
    snapshot_every: int
    """Steps; 0: there are none."""
    checkpoint_every: int

    @property
    def goodput(self) -> float:
        """Useful worker-seconds by all: 1 for an oracle that loses nothing."""
        return self.spent.useful / self.available if self.available else 0.0

    def dollars(self, per_hour: float) -> float:
        """What the workers cost."""
        return self.available / HOUR_S * per_hour

    def to_json(self, tokens: float, per_hour: float | None) -> dict[str, Any]:
        """For machines. `tokens`: of a step; `per_hour`: dollars of one worker."""
        priced = {}
        if per_hour is not None:
            dollars = self.dollars(per_hour)
            billions = self.steps * tokens / 1e9
            priced = {
                "dollars": dollars,
                "dollars_wasted": dollars * (1.0 - self.goodput),
                "dollars_per_billion_tokens": dollars / billions if billions else None,
            }
        return {
            "method": self.method,
            "goodput": self.goodput,
            "worker_seconds": {"available": self.available, **asdict(self.spent)},
            "steps": self.steps,
            "steps_redone": self.steps_redone,
            "tokens": self.steps * tokens,
            "tokens_redone": self.steps_redone * tokens,
            "losses": self.losses,
            "views": self.views,
            "from_storage": self.from_storage,
            "longest_stop_s": self.longest_stop_s,
            "snapshot_every": self.snapshot_every,
            "checkpoint_every": self.checkpoint_every,
            **priced,
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """What follows from the trace for how often to save."""

    snapshot: Interval | None
    """None: the engine keeps no snapshots, or nothing is ever lost."""
    checkpoint: Interval | None
    """Of a run in place, which needs it where memory is not enough. None: it never was."""
    checkpoint_restart: Interval | None
    """Of a run that restarts at every loss."""


def compare(
    setting: Setting, *, snapshot_every: int | None = None, checkpoint_every: int | None = None
) -> tuple[list[Outcome], Advice]:
    """All methods under the same trace. Where nothing is said, each saves as often as is best for it.

    `snapshot_every`, `checkpoint_every`: steps.
    """
    work = setting.work
    n = min(setting.nodes, setting.trace.peak) * setting.per_node
    step_s, copy_s = work.step_s(min(n, work.virtual_shards)), work.copy_s(n)
    between_s = setting.length_s / (setting.trace.removals or 1)
    least = ceil(work.write_s(n) / step_s)  # one is written before the next one begins
    restart = Interval.of(copy_s, between_s, step_s, least) if setting.trace.removals else None
    rare = checkpoint_every or steps_of(HOUR_S / 2, step_s)
    first = play(setting, Method(name="in place", checkpoint_every=rare, snapshot_every=snapshot_every))
    rate = first.from_storage / setting.length_s
    total = Interval.of(copy_s, 1 / rate, step_s, least) if rate else None
    outcomes = []
    for name in METHODS:
        best = total if name == "in place" else restart
        every = checkpoint_every or (best.steps if best is not None else rare)
        in_place = snapshot_every if name == "in place" else None
        again = name == "in place" and every == rare
        method = Method(name=name, checkpoint_every=every, snapshot_every=in_place)
        outcomes.append(first if again else play(setting, method))
    snapshot = None
    if work.sharded and setting.trace.removals:
        snapshot = Interval.of(work.snapshot_s(n), between_s, step_s, ceil(work.send_s(n) / step_s))
    return outcomes, Advice(snapshot, total, restart)


def play(setting: Setting, method: Method) -> Outcome:
    """One run, from the beginning to the end."""
    played = Play(setting, method).play()
    n = min(setting.nodes, setting.trace.peak) * setting.per_node
    snapshots = method.saves(setting.work, n)[0] if method.in_place and setting.work.sharded else 0
    return Outcome(
        method=method.name,
        available=played.available,
        spent=played.progress.spent,
        steps=played.progress.done,
        steps_redone=played.progress.redone,
        losses=played.losses,
        views=len(played.changes),
        from_storage=sum(c.what == "loss" and not c.from_memory for c in played.changes),
        longest_stop_s=max((c.stop_s for c in played.changes), default=0.0),
        snapshot_every=snapshots,
        checkpoint_every=method.checkpoint_every,
    )
