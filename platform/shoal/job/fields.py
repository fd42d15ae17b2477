"""A job as dotted names: `optimizer.lr`, `task.width`, `task.config.n_layer`, and what may stand there."""

from __future__ import annotations

import dataclasses
import inspect
import math
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shoal.job.text_values import format_value, is_choice, is_made, made_as


@dataclass(frozen=True, slots=True)
class Leaf:
    """One value of a job, or of a group which of several kinds it is."""

    name: str
    value: Any
    annotation: Any

    @property
    def text(self) -> str:
        if is_choice(self.annotation) and is_made(self.value):
            return made_as(self.value)
        return format_value(self.value, self.annotation)


def is_group(value: Any) -> bool:
    """Whether `value` has parts with names of their own: a dataclass, or a dictionary with plain names."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(k, str) and k and not set(k) & set(".= \t\n") for k in value)
    return is_made(value)


def parts(group: Any) -> dict[str, Leaf]:
    """name -> part of a dataclass (the fields that its constructor takes) or dictionary; names are not dotted."""
    if isinstance(group, dict):
        return {name: Leaf(name, value, _type_of(value)) for name, value in group.items()}
    return {
        f.name: Leaf(f.name, getattr(group, f.name), annotation(group, f.name))
        for f in dataclasses.fields(group)
        if f.init
    }


def leaves(value: Any, prefix: str = "") -> Iterator[Leaf]:
    """All values in `value` that have no parts of their own, by dotted name.

    Of a group that may be of several kinds (`schedule`) also its own name: the kind comes before its values.
    """
    for name, part in parts(value).items():
        dotted = f"{prefix}{name}"
        if is_made(part.value) and is_choice(part.annotation):
            yield Leaf(dotted, part.value, part.annotation)
        if is_group(part.value):
            yield from leaves(part.value, f"{dotted}.")
        else:
            yield Leaf(dotted, part.value, part.annotation)


def annotation(group: Any, name: str) -> Any:
    """The type of field `name` of a dataclass's value. Where the annotation cannot be resolved (it names something that
    is imported for type checkers only, or a local class), the type of the present value."""
    for owner in type(group).__mro__:
        written = inspect.get_annotations(owner).get(name)
        if written is None:
            continue
        holder = type("holder", (), {"__annotations__": {name: written}})
        try:
            return typing.get_type_hints(
                holder, globalns=vars(sys.modules[owner.__module__]), localns=dict(vars(owner)), include_extras=True
            )[name]
        except Exception:  # noqa: BLE001 - evaluates what the user wrote, which may raise anything; there is a fallback
            break
    return _type_of(getattr(group, name))


def flatten(job: Any) -> dict[str, str]:
    """Every value of the job as text, by dotted name; `task` itself is the name of its class.

    Each text can be given to `--set` again, but for `task` and for values that cannot be written as text. The record
    keeps these: what the optimizer takes from its defaults is said, too.
    """
    out: dict[str, str] = {}
    job = dataclasses.replace(job, optimizer=job.optimizer.filled())
    task = job.task
    out["task"] = type(task).__qualname__
    if not is_group(task):
        out.update({leaf.name: leaf.text for leaf in _attributes(task)})
    out.update({leaf.name: leaf.text for leaf in leaves(job) if leaf.name != "task"})
    return out


def recorded_values(job: Any) -> dict[str, str]:
    """`flatten(job)`, and two values that charts of many runs want: `log10_lr`, because the axes of MLflow's parallel
    coordinates are linear, and `schedule.family`, which is one word also for a schedule that is made of others."""
    return {
        **flatten(job),
        "log10_lr": f"{math.log10(job.optimizer.lr):.6g}",
        "schedule.family": type(job.schedule).__name__,
    }


def _attributes(task: Any) -> Iterator[Leaf]:
    """What a task that is no dataclass keeps in itself: shown, but not to be set."""
    for name, value in sorted(getattr(task, "__dict__", {}).items()):
        yield Leaf(f"task.{name}", value, Any)


def _type_of(value: Any) -> Any:
    if isinstance(value, (tuple, list)) and value and len({type(item) for item in value}) == 1:
        kind: Any = type(value)
        item = _type_of(value[0])
        return tuple[item, ...] if kind is tuple else list[item]  # type: ignore[valid-type]
    return Any if value is None else type(value)
