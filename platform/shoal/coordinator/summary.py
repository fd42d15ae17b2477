"""The task's own summary of an evaluation: perplexity, bits per byte, whatever it derives from the means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from shoal.job import by_value
from shoal.tasks.base import Task


class Summary:
    """Holds the real task, for its `summarize` alone; the run itself does without it in this process."""

    def __init__(self, job_blob: bytes, warn: Callable[[str], None]) -> None:
        self._blob, self._warn = job_blob, warn
        self._task: Task | None = None

    async def load(self) -> None:
        """Unpickle the task, in a thread, because that runs the recipe's imports."""
        try:
            self._task = (await asyncio.to_thread(by_value.loads, self._blob)).task
        except Exception as error:  # noqa: BLE001 - the user's imports; the workers run them too and will say so
            self._warn(f"the task cannot be loaded beside the coordinator, metrics stay plain: {error}")

    def of(self, means: Mapping[str, float]) -> dict[str, float]:
        """What the record says of an evaluation with these means over its samples."""
        if self._task is None:
            return dict(means)
        try:
            return dict(self._task.summarize(dict(means)))
        except Exception as error:  # noqa: BLE001 - the user's code; the plain means are worth more than a failed run
            self._warn(f"{type(self._task).__name__}.summarize failed ({error}); the means are kept plain")
            return dict(means)
