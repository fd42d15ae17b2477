"""A trial as Ray Tune's actors run it: an actor without CPUs that starts a run and reports its evaluations.

One actor serves many trials, one after another; the run's own actors do the work.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray import tune

from shoal.errors import ShoalError
from shoal.state.store import CheckpointStore
from shoal.tuning.meter import Used
from shoal.tuning.orders import Ended, Evaluated, Order, Said
from shoal.tuning.trial import POLL_S, Base, TrialRun

SAID = "said"
"""Key of a result: what the trial said, as a value of `orders`."""
DURABLE_S = 120.0
"""How long a checkpoint may take to become durable after its step."""


def to_config(order: Order) -> dict[str, Any]:
    """An order as Tune passes it on: `fields` is where population-based training changes values."""
    return {**dataclasses.asdict(order), "fields": dict(order.fields)}


def from_config(config: Mapping[str, Any]) -> Order:
    return Order(**{**config, "used": Used(**config["used"])})


class TrialActor(tune.Trainable):
    """One trial after another."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """`base`: a Base."""
        self._base: Base = given["base"]
        self._run: TrialRun | None = None
        self._order: Order = from_config(config)
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Start the run; later, wait for what it says next."""
        said = self._next()
        if isinstance(said, Evaluated):
            self._last = said.point.step
        return {SAID: said, "done": isinstance(said, Ended)}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """For a population: which of the run's own durable checkpoints another trial may go on from."""
        return {"step": None if self._run is None else self._durable_step(self._run)}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """That of the trial that this one is to go on from."""
        assert checkpoint is not None, "what `save_checkpoint` returned"
        if self._order.fork_from is not None:
            self._order = replace(self._order, fork_at=checkpoint["step"])

    def cleanup(self) -> None:
        if self._run is not None:
            self._run.let_go()
        self._run = None

    def _take(self, config: dict[str, Any]) -> None:
        os.chdir(self._base.cwd)  # Tune moves each trial into a folder of its own
        self._order = from_config(config)
        self._last = self._order.after

    def _next(self) -> Said:
        try:
            if self._run is not None:
                return self._run.next()
            self._run = TrialRun(self._base, self._order)
            return self._run.begun
        except ShoalError as error:
            return Ended("failed", str(error))

    def _durable_step(self, run: TrialRun) -> int | None:
        """The step of the run's last checkpoint, once that has what was evaluated last; None: there is none."""
        store, deadline = CheckpointStore(run.folder.read()["checkpoint_uri"]), time.monotonic() + DURABLE_S
        while (latest := store.latest()) is None or latest.step < self._last:
            if run.over or time.monotonic() > deadline:
                return None if latest is None else latest.step
            time.sleep(POLL_S)
        return latest.step
