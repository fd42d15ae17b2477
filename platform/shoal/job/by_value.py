"""Pickling by value, so that classes of a recipe travel to workers that do not have its files.

The only place of this room that touches Ray (its copy of cloudpickle), and only when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def register(modules: Iterable[str]) -> None:
    """From now on pickle the functions and classes of these imported modules by value."""
    from ray import cloudpickle

    for name in modules:
        cloudpickle.register_pickle_by_value(sys.modules[name])


def dumps(value: Any) -> bytes:
    """`value` as Ray would send it to a worker."""
    from ray import cloudpickle

    return cloudpickle.dumps(value)


def loads(content: bytes) -> Any:
    """Inverse of `dumps`. Runs whatever code the value needs to come to life, so read only what you trust."""
    from ray import cloudpickle

    return cloudpickle.loads(content)
