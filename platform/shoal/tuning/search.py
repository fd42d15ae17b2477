"""Ray Tune asks here for the next trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from shoal.tuning.sweeping import Sweeping
from shoal.tuning.trainable import to_config


class Suggestions(Searcher):
    """The sweep's proposals, as many at a time as may train at once."""

    def __init__(self, sweeping: Sweeping) -> None:
        super().__init__()
        self._sweeping = sweeping

    def suggest(self, trial_id: str) -> Any:
        """A configuration; None: not now; FINISHED: never again."""
        if self._sweeping.closing is None and not self._sweeping.room:
            return None
        order = self._sweeping.next()
        return Searcher.FINISHED if order is None else to_config(order)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: proposals are made from the sweep's ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Tune wants a file; what matters is in the sweep's ledger."""
        Path(checkpoint_path).write_text("see sweep.jsonl\n")

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep is resumed from its ledger")
