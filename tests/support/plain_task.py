"""A task that names its columns and is never run, for tests of everything around training."""

from __future__ import annotations

from typing import Any

from shoal.tasks.base import Task


class Plain(Task):
    columns = ("id", "x")

    def build(self) -> Any:
        raise AssertionError("never built")

    def loss(self, model: Any, batch: Any) -> Any:
        raise AssertionError("never run")
