"""Label selectors of Ray nodes: how a condition is written and what it means. Pure.

As in https://docs.ray.io/en/latest/ray-core/scheduling/labels.html: `spot`, `!spot`, `in(a, b)`, `!in(a, b)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from shoal.errors import ConfigError

Selector = tuple[tuple[str, str], ...]
"""(key, condition) pairs; all must hold."""

_WORD = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:{_WORD}(?:\.{_WORD})*/)?{_WORD}")
_CONDITION = re.compile(rf"(!?)(?:({_WORD})|in\(({_WORD}(?:, ?{_WORD})*)\))")


def check_selector(name: str, selector: Iterable[tuple[str, str]]) -> None:
    """Raise ConfigError, which names the job's value `name`, for a selector that Ray would refuse."""
    for key, condition in selector:
        if not _KEY.fullmatch(key):
            raise ConfigError(
                f"{name} has the key {key!r}, which is no label of a Ray node: letters, digits, '-', '_' and '.', with "
                f"a domain and '/' before it if there is one, for example market or ray.io/market-type"
            )
        if not _CONDITION.fullmatch(condition):
            raise ConfigError(
                f"{name} has the condition {condition!r} for {key}; write a value, !value, in(a, b) or !in(a, b)"
            )


def meets(condition: str, value: str | None) -> bool:
    """Whether a node with this value of the label (None: without it) meets the condition."""
    found = _CONDITION.fullmatch(condition)
    assert found is not None, f"{condition!r} was checked before"
    negated, one, several = found.groups()
    among = value in ([one] if one is not None else re.split(", ?", several))
    return among != bool(negated)


def unmet(selector: Iterable[tuple[str, str]], labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """The conditions of `selector` that a node with these labels does not meet."""
    return [(key, condition) for key, condition in selector if not meets(condition, labels.get(key))]
