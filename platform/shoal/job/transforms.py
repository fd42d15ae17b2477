"""The user's own transforms of raw samples, as values of a job. `shoal.data.transforming` runs them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from shoal.errors import ConfigError

Transform = Callable[..., dict[str, Any]]
"""(columns, keys) -> columns: name -> array [n, ...] of n samples, and uint64 [n] for their random numbers. A function,
or a frozen dataclass with `__call__`."""


def transform_name(transform: Any) -> str:
    """What messages call it: the name of the function or class."""
    return str(getattr(transform, "__qualname__", None) or type(transform).__qualname__)


def check_transforms(columns: Any, transforms: Any) -> None:
    """Raise ConfigError unless `transforms` is a tuple of named ones, and `columns` a tuple of names only they need."""
    if not isinstance(transforms, tuple):
        raise ConfigError(
            f"data.transforms={transforms!r} must be a tuple, for example (decode, Hide(0.1)); one alone needs a "
            f"comma: (decode,)"
        )
    for i, transform in enumerate(transforms):
        if reason := _unfit(transform):
            raise ConfigError(f"data.transforms[{i}]={transform!r} {reason}")
    if not isinstance(columns, tuple) or not all(isinstance(name, str) and name for name in columns):
        raise ConfigError(
            f"data.columns={columns!r} must be names of columns, for example ('text', 'label'); one alone needs a "
            f"comma: ('text',)"
        )
    if columns and not transforms:
        raise ConfigError(
            f"data.columns={','.join(columns)} names what data.transforms work on, and there are none; leave it out: "
            f"the task says which columns it needs"
        )


def _unfit(transform: Any) -> str:
    """Why `transform` is none; "" if it is one."""
    if isinstance(transform, type):
        return f"is a class; make a value of it: {transform.__name__}()"
    if inspect.isroutine(transform):
        if transform.__name__ == "<lambda>":
            return "has no name that the record could tell; define a function"
        return ""
    if not dataclasses.is_dataclass(transform):
        return "is neither a function nor a dataclass, whose fields the record tells; make it one of them"
    if not callable(transform):
        return f"cannot be called; give {type(transform).__name__} a method __call__(self, columns, keys)"
    if not transform.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        return f"can be changed while it is in use; write @dataclass(frozen=True) above {type(transform).__name__}"
    return ""
