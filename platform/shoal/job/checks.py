"""Checks for the fields of a job: each error names the field, its value and what would be right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from shoal.errors import ConfigError


def positive(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is a number above zero."""
    _number(name, value)
    if not value > 0:
        raise ConfigError(f"{name}={value!r} must be more than 0")


def at_least(name: str, value: float, low: float) -> None:
    """Raise ConfigError unless `value` is a number of at least `low`."""
    _number(name, value)
    if not value >= low:
        raise ConfigError(f"{name}={value!r} must be at least {low}")


def finite(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is a number, and neither infinite nor "not a number"."""
    _number(name, value)
    if not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} must be a finite number")


def whole(name: str, value: int, low: int) -> None:
    """Raise ConfigError unless `value` is a whole number of at least `low`."""
    at_least(name, value, low)
    if not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} must be a whole number")


def fraction(name: str, value: float, *, closed: bool = False) -> None:
    """Raise ConfigError unless 0 <= value < 1 (`closed`: <= 1)."""
    _number(name, value)
    if not (0 <= value <= 1 if closed else 0 <= value < 1):
        raise ConfigError(f"{name}={value!r} must lie between 0 and 1{'' if closed else ' (1 excluded)'}")


def choice(name: str, value: Any, valid: Sequence[Any]) -> None:
    """Raise ConfigError unless `value` is one of `valid`; the message names the nearest one."""
    if value not in valid:
        raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(str, valid))}{nearest(str(value), valid)}")


def nearest(word: str, valid: Sequence[Any]) -> str:
    """`; did you mean "x"?`, or nothing where no valid name is near."""
    close = get_close_matches(word, [str(v) for v in valid], n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def _number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r} must be a number, not {type(value).__name__}")
