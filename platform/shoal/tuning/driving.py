"""Ray Tune drives the sweep: its loop, with the sweep's searcher, rule and ears in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from shoal.errors import Interrupted
from shoal.launch.cluster import Connection
from shoal.launch.signals import StopRequests
from shoal.ray_compat import quiet_tune
from shoal.tracking.ledger import tail
from shoal.tuning.orders import Ended
from shoal.tuning.rules import Rule
from shoal.tuning.search import Suggestions
from shoal.tuning.sweeping import Sweeping
from shoal.tuning.trainable import SAID, TrialActor
from shoal.tuning.trial import Base, kill_run, stop_run
from shoal.tuning.trials import SweepState

SHOW_S = 0.5
END_S = 180.0
"""How long runs that were asked to end may take for their last checkpoints."""
ASK_AGAIN_S = 2.0
"""Between two requests to end: a run may only have begun in the meantime."""
ACTOR_RETRIES = 1
"""Deaths of a trial's own actor after which another one goes on with the run."""
TO_THE_NODE = 0.001
"""Amount of a node's own resource that binds an actor to that node."""


class SweepDisplay(Protocol):
    """Passive observer of a sweep, called from one thread; no method may raise or take long."""

    def opened(self, state: SweepState) -> None:
        """The sweep begins, or goes on."""
        ...

    def update(self, state: SweepState) -> None:
        """Called about twice per second."""
        ...

    def event(self, kind: str, text: str) -> None:
        """Something happened: stopping or info."""
        ...

    def closed(self, state: SweepState) -> None:
        """The last call."""
        ...


def drive(sweeping: Sweeping, base: Base, connection: Connection, display: SweepDisplay, stop: StopRequests) -> None:
    """Run trials until there are no more, or the sweep closes. Raises Interrupted if the user asks twice."""
    quiet_tune()
    trainable = tune.with_resources(
        tune.with_parameters(TrialActor, base=base),
        tune.PlacementGroupFactory([{_own_resource(connection): TO_THE_NODE}]),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=Suggestions(sweeping),
            scheduler=Rule(sweeping, lambda run, reason: stop_run(run, reason, save=False)),
            # More than there will be: the searcher says when it has no more.
            num_samples=len(sweeping.state.rows) + sweeping.left + 1,
            reuse_actors=True,
            trial_dirname_creator=_folder_of,
            trial_name_creator=_folder_of,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(Path(sweeping.ledger.folder)),
            stop=_Emptied(sweeping),
            callbacks=[_Ears(sweeping, display, stop)],
            failure_config=tune.FailureConfig(max_failures=ACTOR_RETRIES),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except KeyboardInterrupt:
        raise Interrupted(f"sweep {sweeping.state.name} was stopped at once") from None


def _own_resource(connection: Connection) -> str:
    """A resource that only the node has on which the runs' folders are."""
    import ray

    address = next(n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == connection.node_id)
    return f"node:{address}"


def _folder_of(trial: Any) -> str:
    return str(trial.config["name"])


class _Emptied(tune.Stopper):
    """Ends Tune's loop when the sweep is closing and nothing trains any more, whatever Tune still waits for."""

    def __init__(self, sweeping: Sweeping) -> None:
        self._sweeping = sweeping

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._sweeping.closing is not None and not self._sweeping.training


class _Ears(tune.Callback):
    """Hears from Tune what became of trials, from the user when it is to end, and tells the display."""

    def __init__(self, sweeping: Sweeping, display: SweepDisplay, stop: StopRequests) -> None:
        self._sweeping, self._display, self._stop = sweeping, display, stop
        self._shown = self._asked = 0.0
        self._closed_at: float | None = None

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if isinstance(result[SAID], Ended):
            self._sweeping.heard(trial.config["number"], result[SAID])

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        number = trial.config["number"]
        error = trial.get_pickled_error()
        stop_run(self._sweeping.state.rows[number].run_id, "the trial's actor died", save=True)
        self._sweeping.ended(number, "failed", f"the trial's actor failed: {error}")

    def on_step_end(self, iteration: int, trials: Sequence[Any], **info: Any) -> None:
        sweeping, now = self._sweeping, time.monotonic()
        if self._stop.count:
            sweeping.close(f"stopped by {self._stop.name}", by_user=True)
        if now - self._shown >= SHOW_S:
            self._shown = now
            sweeping.look_at_budget()
            self._look_at_runs()
            self._display.update(sweeping.state)
        if sweeping.closing is not None:
            self._wind_up(now)

    def _wind_up(self, now: float) -> None:
        """Ask what trains to end with a checkpoint, again and again; after a while, or asked twice, end it at once."""
        sweeping = self._sweeping
        assert sweeping.closing is not None
        if self._closed_at is None:
            self._closed_at = now
            again = "; Ctrl-C again stops at once" if sweeping.closing.by_user else ""
            if sweeping.training:
                self._display.event("stopping", f"{sweeping.closing.reason}: checkpointing the running trials{again}")
        if self._stop.count >= 2 or now - self._closed_at > END_S:
            for row in sweeping.running:
                kill_run(row.run_id)
            raise KeyboardInterrupt  # no Exception: for those Tune waits until its actors have come to an end
        if now - self._asked >= ASK_AGAIN_S:
            self._asked = now
            for row in sweeping.training:
                stop_run(row.run_id, sweeping.closing.reason, save=True)

    def _look_at_runs(self) -> None:
        """At which step the running trials are."""
        for row in self._sweeping.training:
            entries = tail(Path(row.folder) / "ledger.jsonl", 1 << 13)
            row.now = next((int(e["step"]) for e in reversed(entries) if e["kind"] == "commit"), row.now)
