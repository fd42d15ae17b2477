"""`--set optimizer.lr=3e-4`: a job with some of its values replaced."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from shoal.errors import ConfigError
from shoal.job.fields import is_group, leaves, parts
from shoal.job.optimizers import OWN, Optimizer
from shoal.job.spec import Budget
from shoal.job.text_values import is_choice, is_made, parse

T = TypeVar("T")


def apply(job: T, overrides: Sequence[str]) -> T:
    """`job` (a sweep, too) with `overrides` such as `"workers.max=4"` applied, all at once; of equal names the last
    counts.

    Values are read by the fields' types, and all checks of the job run again, on the result only. A kind of budget
    replaces the other kinds, and another optimizer begins with its own defaults. Fields of the task are set the same
    way if it is a dataclass. What may be of several kinds can be set as a whole (`schedule=Rex`), and its values with
    it (`schedule.warmup=0.1`), which then are those of the new kind. Raises ConfigError for an unknown name (with the
    nearest valid one and those of its level), a value of the wrong type, and whatever the job refuses.
    """
    given: dict[str, str] = {}
    for override in overrides:
        name, sign, text = override.partition("=")
        if not sign or not name.strip():
            raise ConfigError(f"override {override!r} is not name=value; write for example --set optimizer.lr=3e-4")
        given[name.strip()] = text
    tree: dict[str, Any] = {}
    for name in sorted(given, key=lambda name: name.count(".")):  # wholes before their parts
        _check_name(job, name, given)
        node = tree
        *groups, last = name.split(".")
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = {_WHOLE: given[name]}
    return _rebuild(job, tree, "") if tree else job


_WHOLE = ""
"""In the tree of what is set: the text of a value itself, beside those of its parts."""


def _check_name(job: Any, name: str, given: Mapping[str, str]) -> None:
    """Raise ConfigError unless `name` is a value of the job, as it is once `given` is set, and can be set."""
    at: Any = job
    seen, choice = "", False
    for word in name.split("."):
        if not is_group(at):
            raise ConfigError(_no_parts(at, seen, name))
        known = parts(at)
        if word not in known:
            whole = seen or f"A {type(job).__name__.lower()}"
            kind = f"{seen} is {type(at).__name__} (another kind: {seen}=NAME), which" if choice else whole
            raise ConfigError(f"there is no {name}{_nearest(job, name)}. {kind} has: {', '.join(known) or 'no fields'}")
        part = known[word]
        at, choice = part.value, is_choice(part.annotation)
        seen = f"{seen}.{word}" if seen else word
        if seen in given and seen != name:
            if not choice and is_group(at):
                raise ConfigError(f"{name} and the whole of {seen} are both set; set one of them")
            at = parse(given[seen], part.annotation, seen) if choice else at
    if seen == "task":
        raise ConfigError("task cannot be set as text; choose it in the recipe, and set its fields: task.NAME=VALUE")
    if is_made(at) and not choice:
        raise ConfigError(f"{name} is a group of values; set one of {', '.join(f'{name}.{p}' for p in parts(at))}")


def _no_parts(value: Any, seen: str, name: str) -> str:
    if seen == "task":
        return (
            f"{name} cannot be set: the task {type(value).__qualname__} is no dataclass; decorate it with "
            f"@dataclass(frozen=True), or change it in the recipe"
        )
    held = "empty" if value is None else f"a single value ({value!r})"
    return f"there is no {name}: {seen} is {held} and has no parts; set {seen} itself, or change it in the recipe"


def _nearest(job: Any, name: str) -> str:
    """`; did you mean …?`: a value whose last word is the same or near, or whose whole name is near."""
    names = {leaf.name: leaf.name.rpartition(".")[2] for leaf in leaves(job)}
    word = name.rpartition(".")[2]
    close = get_close_matches(word, names.values(), n=1)
    near = [n for n, last in names.items() if last == word]
    near += get_close_matches(name, names, n=1)
    near += [n for n, last in names.items() if last in close]
    return f"; did you mean {near[0]}?" if near else ""


def _rebuild(value: T, changes: dict[str, Any], prefix: str) -> T:
    """`value` with `changes` (name -> text of it, changes of its parts) made at once: only the result is checked."""
    known = parts(value)
    new: dict[str, Any] = {}
    for name, change in changes.items():
        part = known[name]
        inside = {word: c for word, c in change.items() if word != _WHOLE}
        whole = change.get(_WHOLE)
        new[name] = part.value if whole is None else parse(whole, part.annotation, f"{prefix}{name}")
        if inside:
            new[name] = _rebuild(new[name], inside, f"{prefix}{name}.")
    if isinstance(value, dict):
        return type(value)({**value, **new})
    if isinstance(value, Budget) and any(v is not None for v in new.values()):
        new = {**dict.fromkeys(known), **new}
    if isinstance(value, Optimizer) and new.get("name", value.name) != value.name:
        new = {**dict.fromkeys(OWN), **new}
    try:
        return dataclasses.replace(value, **new)  # type: ignore[type-var]
    except ConfigError:
        raise
    except Exception as error:
        said = ", ".join(f"{prefix}{name}={new[name]}" for name in changes)
        raise ConfigError(f"{said} is refused: {type(error).__name__}: {error}") from error
