"""Families of learning-rate schedules, as values. Their curves: `shoal.optim.schedules`; a table: docs/schedules.md.

All of them are functions of progress, the fraction of the budget that is used, and give the rate as a fraction of its
peak, `optimizer.lr`. In text (`--set schedule=...`, `job.json`) they are written as in Python: `Rex(warmup=0.1)`.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import Any, Literal

from shoal.errors import ConfigError
from shoal.job.checks import at_least, choice, finite, fraction, positive, whole

ROUNDING = 1e-9
"""Shares of a budget that differ by less are the same: sums and quotients of decimal fractions are not exact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """What all families have in common."""

    warmup: float = 0.05
    """Share of the budget over which the rate rises, on a straight line, from 0 to where the curve begins (Goyal et al.
    2017, arXiv:1706.02677)."""

    def __post_init__(self) -> None:
        _numbers(self)
        fraction(_named(self, "warmup"), self.warmup)
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for values of one family's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Falling(_Family):
    final: float = 0.1
    """Rate of the last step, as a fraction of the peak."""

    def _check(self) -> None:
        fraction(_named(self, "final"), self.final, closed=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(_Family):
    """The peak, all the time after the warm-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear(_Falling):
    """A straight line down to `final` (Li, Yumer & Ramanan 2020, "Budgeted training", arXiv:1905.04753)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cosine(_Falling):
    """Half a cosine down to `final` (Loshchilov & Hutter 2017, "SGDR", arXiv:1608.03983)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Polynomial(_Falling):
    """(1 - r) ** power, down to `final` (Chen et al. 2017, "DeepLab", arXiv:1606.00915, with 0.9; You et al. 2017,
    "LARS", arXiv:1708.03888, with 2)."""

    power: float = 2.0

    def _check(self) -> None:
        fraction(_named(self, "final"), self.final, closed=True)
        positive(_named(self, "power"), self.power)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step(_Family):
    """The rate is multiplied by `factor` at some points (He et al. 2016, arXiv:1512.03385: a tenth at 1/2 and 3/4)."""

    milestones: tuple[float, ...] | None = None
    """Progress after which the rate falls, in rising order. None: 0.5 and 0.75, unless `every` is set."""
    every: float | None = None
    """In the place of `milestones`: the rate falls each time that this share of the budget is used up."""
    factor: float = 0.1

    def _check(self) -> None:
        fraction(_named(self, "factor"), self.factor, closed=True)
        if self.every is not None:
            self._check_every(self.every)
            return
        milestones = (0.5, 0.75) if self.milestones is None else self.milestones
        if not isinstance(milestones, tuple) or not milestones:
            raise ConfigError(f"Step.milestones={milestones!r} must be shares of the budget, for example (0.5, 0.75)")
        for milestone in milestones:
            fraction(_named(self, "milestones"), milestone)
        if list(milestones) != sorted(set(milestones)) or milestones[0] <= self.warmup:
            raise ConfigError(
                f"Step.milestones={milestones!r} must rise, and lie behind the warm-up (Step.warmup={self.warmup!r})"
            )
        if self.milestones is not None:
            object.__setattr__(self, "milestones", tuple(map(float, milestones)))

    def _check_every(self, every: float) -> None:
        at_least("Step.every", every, 1e-6)
        fraction("Step.every", every, closed=True)
        object.__setattr__(self, "every", float(every))
        if self.milestones is not None:
            raise ConfigError(f"Step.milestones={self.milestones!r} and every={every!r} are both set; leave one out")
        if every < self.warmup:
            raise ConfigError(
                f"Step.every={every!r} is shorter than the warm-up (Step.warmup={self.warmup!r}), and the peak would "
                f"never be reached; lower Step.warmup"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Exponential(_Falling):
    """The same ratio from each step to the next, down to `final` (torch's `ExponentialLR`)."""

    def _check(self) -> None:
        fraction("Exponential.final", self.final, closed=True)
        if self.final == 0:
            raise ConfigError("Exponential.final=0.0 is never reached by a constant ratio; use for example 0.001")


@dataclass(frozen=True, kw_only=True, slots=True)
class InverseSqrt(_Family):
    """sqrt(warmup / progress) (Vaswani et al. 2017, "Attention is all you need", arXiv:1706.03762). It never asks how
    long the budget is beyond the warm-up, and ends at sqrt(warmup)."""

    def _check(self) -> None:
        if self.warmup == 0:
            raise ConfigError("InverseSqrt.warmup=0.0 would begin with an infinite rate; use for example 0.05")


@dataclass(frozen=True, kw_only=True, slots=True)
class Triangular(_Family):
    """Up from `low` to the peak and down again, on straight lines (Smith 2017, "Cyclical learning rates",
    arXiv:1506.01186)."""

    warmup: float = 0.0
    """Share of the budget over which the rate rises from 0 to `low`. The first half of a cycle is a warm-up itself."""
    cycles: int = 4
    low: float = 0.25
    """Lowest rate, as a fraction of the peak: the one that cycles begin and end with. Smith: 1/4 to 1/3."""

    def _check(self) -> None:
        whole(_named(self, "cycles"), self.cycles, 1)
        fraction(_named(self, "low"), self.low, closed=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Triangular2(Triangular):
    """As `Triangular`, but each cycle rises half as far above `low` as the one before (Smith 2017)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCycle(_Falling):
    """Up from `start` to the peak over `warmup`, then down to far below `start` (Smith & Topin 2018,
    "Super-convergence", arXiv:1708.07120; the defaults are torch's). The momentum is not cycled."""

    warmup: float = 0.3
    """Share of the budget over which the rate rises."""
    final: float = 4e-6
    start: float = 0.04
    """Rate at the beginning, as a fraction of the peak."""
    shape: Literal["cosine", "linear"] = "cosine"
    """Of the ways up and down. The paper's is linear."""
    three_phase: bool = False
    """Down to `start` as fast as it rose, and from there to `final`, as in the paper; else down to `final` at once."""

    def _check(self) -> None:
        for name in ("final", "start"):
            fraction(_named(self, name), getattr(self, name), closed=True)
        choice(_named(self, "shape"), self.shape, ("cosine", "linear"))
        if self.three_phase and self.warmup >= 0.5:
            raise ConfigError(
                f"OneCycle.warmup={self.warmup!r} with three_phase leaves nothing for the third phase; use less than "
                f"0.5, for example 0.3"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmRestarts(_Falling):
    """`Cosine` several times, each time from the peak (Loshchilov & Hutter 2017, "SGDR", arXiv:1608.03983). The last
    cycle ends with the budget."""

    cycles: int = 3
    growth: float = 2.0
    """Length of a cycle against the one before."""

    def _check(self) -> None:
        fraction("WarmRestarts.final", self.final, closed=True)
        whole("WarmRestarts.cycles", self.cycles, 1)
        positive("WarmRestarts.growth", self.growth)
        # By logarithms: the ratio itself may be beyond what a float holds.
        if max(self.cycles - 1, 1) * abs(math.log(self.growth)) > math.log(1e6):
            raise ConfigError(
                f"WarmRestarts.growth={self.growth!r} with cycles={self.cycles}: the lengths of the cycles would "
                f"differ by a factor of more than a million; use fewer cycles, or a growth nearer to 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Rex(_Falling):
    """(1 - r) / (1/2 + (1 - r) / 2), down to `final`: between linear and a late fall (Chen, Wolfe & Kyrillidis 2021,
    "REX: revisiting budgeted training with an improved schedule", arXiv:2107.04197)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupStableDecay(_Falling):
    """The peak, and at the end a fall to `final` (Hu et al. 2024, "MiniCPM", arXiv:2404.06395; Hägele et al. 2024,
    "Scaling laws and compute-optimal training beyond fixed training durations", arXiv:2405.18392)."""

    decay: float = 0.2
    """Share of the budget over which the rate falls. Hu: 0.1; Hägele: 0.2."""
    shape: Literal["sqrt", "linear", "cosine"] = "sqrt"
    """Of the fall, x being the part of it that is done: 1 - sqrt(x) (Hägele's best), 1 - x, or half a cosine."""

    def _check(self) -> None:
        fraction("WarmupStableDecay.final", self.final, closed=True)
        positive("WarmupStableDecay.decay", self.decay)
        choice("WarmupStableDecay.shape", self.shape, ("sqrt", "linear", "cosine"))
        if self.warmup + self.decay > 1 + ROUNDING:
            raise ConfigError(
                f"WarmupStableDecay.warmup={self.warmup!r} and decay={self.decay!r} are more than the whole budget; "
                f"together they may be 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeTest(_Family):
    """From `start` up to the peak, by the same ratio from each step to the next: what `shoal lr-find` trains with
    (Smith 2017, "Cyclical learning rates", arXiv:1506.01186, whose test rises on a line)."""

    warmup: float = 0.0
    """Share of the budget over which the rate rises from 0 to `start`."""
    start: float = 1e-6
    """Rate at the beginning, as a fraction of the peak."""

    def _check(self) -> None:
        positive("RangeTest.start", self.start)
        fraction("RangeTest.start", self.start, closed=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Piecewise:
    """Schedules one after the other, each over its share of the budget (torch's `SequentialLR`)."""

    pieces: tuple[tuple[float, Schedule], ...]
    """(share of the budget, schedule); the shares add up to 1. A piece sees its own progress, from 0 to 1, and its
    warm-up begins at the rate at which the piece before it ended."""

    def __post_init__(self) -> None:
        example = "for example ((0.3, Constant()), (0.7, Cosine()))"
        if not isinstance(self.pieces, tuple) or not self.pieces:
            raise ConfigError(f"Piecewise.pieces={self.pieces!r} must be pairs (share, schedule), {example}")
        for piece in self.pieces:
            if not isinstance(piece, tuple) or len(piece) != 2:
                raise ConfigError(f"Piecewise.pieces has {piece!r}, which is no pair (share, schedule); {example}")
            finite("a share in Piecewise.pieces", piece[0])
            positive("a share in Piecewise.pieces", piece[0])
            check_schedule("a schedule in Piecewise.pieces", piece[1])
        total = math.fsum(share for share, _ in self.pieces)
        if abs(total - 1) > ROUNDING:
            raise ConfigError(f"the shares in Piecewise.pieces add up to {total:g}, not to 1; {example}")
        object.__setattr__(self, "pieces", tuple((float(share), schedule) for share, schedule in self.pieces))


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """Another schedule with a lower peak; mostly for a piece of `Piecewise`."""

    by: float
    of: Schedule

    def __post_init__(self) -> None:
        _numbers(self)
        at_least("Scaled.by", self.by, ROUNDING)
        fraction("Scaled.by", self.by, closed=True)
        check_schedule("Scaled.of", self.of)


Schedule = (
    Constant
    | Linear
    | Cosine
    | Polynomial
    | Step
    | Exponential
    | InverseSqrt
    | Triangular
    | Triangular2
    | OneCycle
    | WarmRestarts
    | Rex
    | WarmupStableDecay
    | RangeTest
    | Piecewise
    | Scaled
)
"""Whatever `schedule` of a job may be."""
KINDS: tuple[type[Any], ...] = typing.get_args(Schedule)


def check_schedule(name: str, value: Any) -> None:
    """Raise ConfigError unless `value` is one of the families."""
    if not isinstance(value, KINDS):
        names = ", ".join(kind.__name__ for kind in KINDS)
        made = isinstance(value, type) and issubclass(value, KINDS)
        hint = f"make one: {value.__name__}()" if made else f"there are {names}"
        raise ConfigError(f"{name}={value!r} is no schedule; {hint}")


def _named(value: Any, field: str) -> str:
    return f"{type(value).__name__}.{field}"


def _numbers(value: Any) -> None:
    """Check fields that are floats; whole numbers become floats, so that `warmup=0` and `warmup=0.0` are one job."""
    for field in dataclasses.fields(value):
        if field.type == "float":
            now = getattr(value, field.name)
            finite(_named(value, field.name), now)
            object.__setattr__(value, field.name, float(now))
