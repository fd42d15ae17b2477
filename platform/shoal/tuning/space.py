"""What a sweep searches: domains for fields of the job, and points in them. Pure.

A space maps dotted names, as in `--set`, to domains. A family's own parameters exist only with that family:

    {"optimizer.lr": loguniform(1e-4, 1e-2),
     "schedule": one_of(family(shoal.Cosine, warmup=uniform(0, 0.2)), family(shoal.Rex))}

A *point* is a flat dictionary of plain values by dotted name, in the order in which they are to be set.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from shoal.errors import ConfigError
from shoal.job import Job
from shoal.job.checks import at_least, finite
from shoal.job.overrides import apply
from shoal.job.text_values import format_value
from shoal.tuning.trials import Value

Point = dict[str, Value]
MOST_CORNERS = 200
"""Combinations of the domains' ends that are tried on the job before a sweep starts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values, in no order."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("choice() has no values; name some, for example choice(16, 32, 64)")
        plain = [_plain(v) for v in self.values]
        if len({repr(v) for v in plain}) < len(plain):
            raise ConfigError(f"choice{self.values!r} has a value twice; leave one out")
        object.__setattr__(self, "values", tuple(plain))

    def sample(self, draw: random.Random) -> Value:
        return draw.choice(self.values)

    def holds(self, value: Value) -> bool:
        return any(value == v and type(value) is type(v) for v in self.values)

    def ends(self) -> tuple[Value, ...]:
        return self.values

    def clip(self, value: Value) -> Value:
        return value if self.holds(value) else self.values[0]

    def facts(self) -> dict[str, Any]:
        return {"kind": "choice", "values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included; `log`: drawn uniformly in their logarithm; `whole`: integers."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    """Only low, low + step, low + 2 step, ..."""
    whole: bool = False

    def __post_init__(self) -> None:
        name = f"the domain from {self.low!r} to {self.high!r}"
        for end in (self.low, self.high):
            finite(f"an end of {name}", end)
        if not self.low < self.high:
            raise ConfigError(f"{name} is empty; its first number must be less than its second")
        if self.log and self.low <= 0:
            raise ConfigError(f"{name} is logarithmic and must begin above 0")
        if self.step is not None:
            at_least(f"step of {name}", self.step, 1e-12)
            if self.low + self.step > self.high:
                raise ConfigError(f"step={self.step!r} of {name} is longer than the domain; use a shorter one")
        if self.whole and any(v != int(v) for v in (self.low, self.high, self.step or 1)):
            raise ConfigError(f"{name} must begin and end with whole numbers, and step={self.step!r} be one")

    def sample(self, draw: random.Random) -> Value:
        if self.step is not None:
            return draw.choice(self._steps())
        if self.log:
            value = math.exp(draw.uniform(math.log(self.low), math.log(self.high)))
            return self.clip(round(value) if self.whole else value)
        return draw.randint(int(self.low), int(self.high)) if self.whole else draw.uniform(self.low, self.high)

    def holds(self, value: Value) -> bool:
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or (self.whole and not isinstance(value, int))
        ):
            return False
        return self.low <= value <= self.high and (self.step is None or value in self._steps())

    def ends(self) -> tuple[Value, ...]:
        return (
            self._steps() if self.step is not None and len(self._steps()) <= 2 else (self._made(self.low), self._last)
        )

    def clip(self, value: Any) -> Value:
        """The nearest number of the domain."""
        if self.step is not None:
            return min(self._steps(), key=lambda s: abs(float(s) - value))
        held = min(max(value, self.low), self.high)
        return self._made(round(held) if self.whole else held)

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("low", "high", "log", "step", "whole")} | {"kind": "range"}

    def all(self) -> tuple[Value, ...] | None:
        """Every number of it; None: there are infinitely many."""
        if self.step is None and not self.whole:
            return None
        return self._steps() if self.step is not None else tuple(range(int(self.low), int(self.high) + 1))

    @property
    def _last(self) -> Any:
        return self._steps()[-1] if self.step is not None else self._made(self.high)

    def _steps(self) -> tuple[Any, ...]:
        assert self.step is not None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        # Rounded, so that 0.1 + 2 * 0.1 is 0.3: the same number as the one that people write.
        return tuple(self._made(round(self.low + i * self.step, 12)) for i in range(count))

    def _made(self, value: float) -> Any:
        return int(value) if self.whole else float(value)


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of what may be of several kinds (`schedule`), with domains or values for its own parameters."""

    kind: str
    parameters: tuple[tuple[str, Choice | Range], ...]


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of some families."""

    families: tuple[Family, ...]


Domain = Choice | Range | OneOf


def choice(*values: Any) -> Choice:
    """One of `values`: numbers, words, or whatever else the field takes."""
    return Choice(values)


def uniform(low: float, high: float) -> Range:
    """A number from `low` to `high`."""
    return Range(low, high)


def loguniform(low: float, high: float) -> Range:
    """A number from `low` to `high`, drawn uniformly in its logarithm."""
    return Range(low, high, log=True)


def quniform(low: float, high: float, step: float) -> Range:
    """One of low, low + step, low + 2 step, ... up to `high`."""
    return Range(low, high, step=step)


def integers(low: int, high: int, *, step: int | None = None, log: bool = False) -> Range:
    """A whole number from `low` to `high`, both included."""
    return Range(low, high, log=log, step=step, whole=True)


def family(kind: type[Any] | str, **parameters: Any) -> Family:
    """The family `kind` (`shoal.Cosine`) with a domain, or one value, for some of its parameters; others keep their
    defaults. Raises ConfigError for a parameter that it does not have."""
    name = kind if isinstance(kind, str) else kind.__name__
    known = [f.name for f in fields(kind)] if not isinstance(kind, str) and is_dataclass(kind) else None
    for parameter, domain in parameters.items():
        if known is not None and parameter not in known:
            raise ConfigError(f"{name} has no {parameter}; it has {', '.join(known)}")
        if isinstance(domain, OneOf):
            raise ConfigError(f"{name}.{parameter} cannot be one_of(...) inside a family; use choice(...)")
    made = {p: d if isinstance(d, (Choice, Range)) else Choice((d,)) for p, d in parameters.items()}
    return Family(name, tuple(made.items()))


def one_of(*families: Family | type[Any]) -> OneOf:
    """One of several families, each with its own parameters, which exist only with it."""
    made = tuple(f if isinstance(f, Family) else family(f) for f in families)
    names = [f.kind for f in made]
    if not made or len(set(names)) < len(names):
        raise ConfigError(f"one_of({', '.join(names)}) needs some families, each once; join their domains in one")
    return OneOf(made)


@dataclass(frozen=True, slots=True)
class Axis:
    """One searched field."""

    name: str
    domain: Choice | Range
    only_with: tuple[str, str] | None = None
    """(field, value): exists only where that field has that value."""

    @property
    def key(self) -> str:
        """Unique among the axes: two families may have a parameter of one name."""
        return self.name if self.only_with is None else f"{self.name}[{self.only_with[1]}]"

    def exists_in(self, point: Mapping[str, Value]) -> bool:
        return self.only_with is None or point.get(self.only_with[0]) == self.only_with[1]

    def facts(self) -> dict[str, Any]:
        only = {} if self.only_with is None else {"only_with": dict([self.only_with])}
        return {"name": self.name, **self.domain.facts(), **only}


def axes_of(space: Mapping[str, Domain]) -> tuple[Axis, ...]:
    """The axes of `space`, families before their parameters. Raises ConfigError for what is no domain."""
    if not space:
        raise ConfigError(
            "the space is empty; search at least one field, for example {'optimizer.lr': loguniform(...)}"
        )
    found: list[Axis] = []
    for name, domain in space.items():
        if isinstance(domain, OneOf):
            found.append(Axis(name, Choice(tuple(f.kind for f in domain.families))))
            for each in domain.families:
                found += [Axis(f"{name}.{p}", d, (name, each.kind)) for p, d in each.parameters]
        elif isinstance(domain, (Choice, Range)):
            found.append(Axis(name, domain))
        else:
            raise ConfigError(
                f"space[{name!r}]={domain!r} is no domain; use choice(...), uniform(...), loguniform(...), "
                f"quniform(...), integers(...) or one_of(family(...), ...), or set the value in the job"
            )
    for axis in found:
        if axis.only_with is not None and axis.name in space:
            raise ConfigError(
                f"{axis.name} is in the space by itself and in {axis.only_with[1]}; leave one of them out"
            )
    return tuple(found)


def point_of(axes: Sequence[Axis], pick: Callable[[Axis], Value]) -> Point:
    """The point whose existing axes have the values that `pick` gives, asked in order."""
    point: Point = {}
    for axis in axes:
        if axis.exists_in(point):
            point[axis.name] = pick(axis)
    return point


def random_point(axes: Sequence[Axis], seed: int, number: int) -> Point:
    """Point `number` of the endless random sequence of `seed`: always the same, whichever were drawn before."""
    draw = random.Random(f"{seed}:{number}")
    return point_of(axes, lambda axis: axis.domain.sample(draw))


def grid(axes: Sequence[Axis]) -> Iterator[Point]:
    """All points, the last axis fastest. Raises ConfigError for a domain with infinitely many values."""
    for axis in axes:
        if isinstance(axis.domain, Range) and axis.domain.all() is None:
            raise ConfigError(
                f"a grid cannot have all values of {axis.name} from {axis.domain.low:g} to {axis.domain.high:g}; use "
                f"choice(...), quniform(low, high, step) or integers(...), or another search"
            )
    return _product(axes, lambda d: d.values if isinstance(d, Choice) else d.all() or ())


def holds(axes: Sequence[Axis], point: Mapping[str, Value]) -> bool:
    """Whether `point` lies in the space."""
    try:
        return point_of(axes, lambda axis: point[axis.name]) == dict(point) and all(
            axis.domain.holds(point[axis.name]) for axis in axes if axis.exists_in(point)
        )
    except KeyError:
        return False


def overrides(point: Mapping[str, Value]) -> list[str]:
    """`point` as `--set` takes it."""
    return [f"{name}={text(value)}" for name, value in point.items()]


def text(value: Value) -> str:
    """One value as `--set` takes it."""
    return value if isinstance(value, str) else format_value(value)


def check(axes: Sequence[Axis], job: Job) -> None:
    """Raise ConfigError if the job lacks a searched field, or refuses values at the ends of the domains, or has not
    budget enough for one step with them."""
    for point in _corners(axes):
        try:
            check_one_step(apply(job, overrides(point)))
        except ConfigError as error:
            said = ", ".join(f"{name}={text(value)}" for name, value in point.items())
            raise ConfigError(f"the space has a point that the job refuses ({said}): {error}") from None


def check_one_step(job: Job) -> None:
    """Raise ConfigError if the job's budget is less than one step."""
    if job.budget.samples is not None and job.budget.samples < job.batch.size:
        raise ConfigError(
            f"budget.samples={job.budget.samples} is less than one step of batch.size={job.batch.size}; raise it"
        )


def _corners(axes: Sequence[Axis]) -> Iterable[Point]:
    """All combinations of the domains' ends; if they are too many each end, and some combinations."""
    first = list(itertools.islice(_product(axes, lambda d: d.ends()), MOST_CORNERS + 1))
    if len(first) <= MOST_CORNERS:
        return first
    draw = random.Random(0)

    def corner(fixed: Axis | None = None, value: Value = None) -> Point:
        return point_of(axes, lambda a: value if a is fixed else draw.choice(a.domain.ends()))

    def with_family(axis: Axis, value: Value) -> Point:
        if axis.only_with is None:
            return corner(axis, value)
        name, kind = axis.only_with
        pinned = [replace(a, domain=Choice((kind,))) if a.name == name else a for a in axes]
        return point_of(pinned, lambda a: value if a.key == axis.key else draw.choice(a.domain.ends()))

    singles = [with_family(axis, value) for axis in axes for value in axis.domain.ends()]
    return singles + [corner() for _ in range(MOST_CORNERS)]


def _product(
    axes: Sequence[Axis], values: Callable[[Any], Iterable[Value]], at: Point | None = None
) -> Iterator[Point]:
    point = at or {}
    if not axes:
        yield dict(point)
        return
    axis, rest = axes[0], axes[1:]
    if not axis.exists_in(point):
        yield from _product(rest, values, point)
        return
    for value in values(axis.domain):
        yield from _product(rest, values, {**point, axis.name: value})


def _plain(value: Any) -> Value:
    """A value as the ledger and `--set` have it: numbers, words and None as they are, anything else as text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, type):
        return value.__name__
    return repr(value) if is_dataclass(value) else format_value(value)
