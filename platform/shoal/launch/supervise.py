"""From a coordinator to an outcome: start it, find it again, follow it to the end of the run, say how that was."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shoal.coordinator.status import Display, Outcome, RunStatus
from shoal.errors import ConfigError, RunOver, ShoalError, TrainingFailed
from shoal.launch.signals import StopRequests
from shoal.run_folder import RunFolder
from shoal.state.store import CheckpointStore
from shoal.tracking.ledger import Entry, tail
from shoal.tracking.ui import where_recorded

if TYPE_CHECKING:
    from shoal.coordinator.concluding import Ended
    from shoal.coordinator.plan import RunPlan
    from shoal.launch.cluster import Connection
    from shoal.launch.prepare import Prepared

NAMESPACE = "shoal"
POLL_S = 0.5
ANSWER_S = 60.0
"""A coordinator that does not answer for so long is taken for dead."""
COORDINATOR_RESTARTS = 10
"""How often Ray may start a coordinator again that died."""


@dataclass(frozen=True, slots=True)
class Post:
    """Where the coordinator of a run is to be reached, for as long as the run is not over."""

    actor: Any
    run_id: str
    kept: bool
    """A pool keeps its process, for runs to come."""

    def ask(self, what: str, *arguments: Any) -> Any:
        """Call a method of the coordinator; returns the reference to what it returns. RunOver if it is over."""
        return self.actor.ask.remote(self.run_id, what, *arguments)

    def let_go(self) -> None:
        """The outcome is known, and nobody else is to fetch it."""
        import ray

        if self.kept:
            self.actor.dismiss.remote(self.run_id)
        else:
            ray.kill(self.actor, no_restart=True)

    def end(self) -> None:
        """End it at once, whatever it does."""
        import ray

        ray.kill(self.actor, no_restart=True)


def start(ready: Prepared, connection: Connection) -> Post:
    """Start the run's coordinator and the run.

    Raises ConfigError if the run is going on already, and what the coordinator refuses at its birth.
    """
    _clear(ready.folder)
    plan = ready.plan(connection)
    if plan.pool is not None and (post := _start_in_pool(plan, plan.pool)) is not None:
        return post
    return _start_alone(plan, connection)


def _start_in_pool(plan: RunPlan, pool: str) -> Post | None:
    """Let a warm coordinator begin; None: there is none where the run's folder is."""
    import ray

    from shoal.pool.spec import pool_name

    keeper: Any = ray.get_actor(pool_name(pool), NAMESPACE)
    name = answer(keeper.begin_run.remote(plan.run_id, plan.node_id, pickle.dumps(plan)))
    return Post(ray.get_actor(name, NAMESPACE), plan.run_id, kept=True) if name is not None else None


def _start_alone(plan: RunPlan, connection: Connection) -> Post:
    import ray

    from shoal.coordinator.actor import Coordinator

    # Where the run's folder is. A wish (soft=True) is not enough: Ray then takes a worker's node now and then.
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(connection.node_id, soft=False)
    coordinator: Any = (
        ray.remote(Coordinator)
        .options(
            name=plan.coordinator,
            namespace=NAMESPACE,
            # On a cluster that outlives us the coordinator does, too, and decides by `if_detached` what then happens.
            lifetime=None if connection.local else "detached",
            num_cpus=0,
            max_restarts=COORDINATOR_RESTARTS,
            scheduling_strategy=place,
        )
        .remote(plan)
    )
    answer(coordinator.run.remote())
    return Post(coordinator, plan.run_id, kept=False)


def reach(run_id: str) -> Post | None:
    """The coordinator of a run on the connected cluster; None if there is none."""
    import ray

    from shoal.pool.opening import host_of

    name = host_of(run_id)
    try:
        return Post(ray.get_actor(name or f"shoal-{run_id}", NAMESPACE), run_id, kept=name is not None)
    except ValueError:
        return None


def find(run_id: str) -> Any | None:
    """The actor of the coordinator of a run on the connected cluster; None if there is none."""
    post = reach(run_id)
    return post.actor if post is not None else None


def answer(ref: Any, timeout_s: float = ANSWER_S) -> Any:
    """What a coordinator's method returns; its refusals are raised as they were, without a traceback around them."""
    import ray

    try:
        return ray.get(ref, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ShoalError):
            raise error.cause from None
        raise


def _clear(folder: RunFolder) -> None:
    """Let go of the coordinator that an earlier part of this run may still have."""
    deadline = time.monotonic() + ANSWER_S
    while (old := reach(folder.run_id)) is not None:
        if _last_word(folder) is None or time.monotonic() > deadline:
            raise ConfigError(
                f"run {folder.run_id} is going on in this cluster; follow it with `shoal attach {folder.run_id}`, or "
                f"end it with `shoal stop {folder.run_id}`"
            )
        old.let_go()
        time.sleep(0.05)


def follow(post: Post, display: Display, stop: StopRequests, *, after: int = 0) -> Ended | None:
    """Show the run until its end; None if the user asked twice to stop.

    `after`: the first news to show; negative: how many of those that there were. Raises RayActorError or
    GetTimeoutError if the coordinator dies or falls silent, RunOver if somebody else has heard the outcome and let the
    coordinator go, and what ended the run at its birth.
    """
    import ray

    run, status, asked, silent_since = post.ask("outcome"), RunStatus(phase="starting"), False, None
    while True:
        done, _ = ray.wait([run], timeout=POLL_S)
        try:
            status, news = answer(post.ask("status", after))
            for kind, text in news:
                display.event(kind, text)
            after, silent_since = status.news, None
            display.status(status)
            if done:
                return answer(run)
        except RunOver:
            if done:
                return answer(run)
            raise
        except ray.exceptions.ActorUnavailableError:
            # Ray is starting it again; the workers train on meanwhile.
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > ANSWER_S:
                raise
            display.status(replace(status, phase="re-forming", message="the coordinator is being started again"))
            run = post.ask("outcome") if done else run
        if stop.count >= 2:
            return None
        if stop.count:
            post.ask("stop", f"stopped by {stop.name}")  # again and again: a word may be lost in a restart
            if not asked:
                display.event("stopping", "stopping after this step, checkpointing; Ctrl-C again stops at once")
            asked = True


# Outcomes: from the run's folder alone, so that it does not matter who followed it ---------------------------------


def outcome(folder: RunFolder, ended: Ended, stop_code: int) -> Outcome:
    """How a run ended that was followed to its end."""
    later = f"shoal runs send {folder.run_id}"
    note = f"{ended.unsent} entries could not be sent to MLflow; send them later: {later}" if ended.unsent else None
    codes: Mapping[str, int] = {"finished": 0, "failed": 1, "stopped": stop_code}
    return Outcome(
        status=ended.status,
        run_id=folder.run_id,
        folder=str(folder.path),
        step=ended.step,
        metrics=ended.metrics,
        checkpoint=ended.checkpoint,
        model=_model(folder, ended.status),
        record=where_recorded(folder),
        cost=folder.read().get("cost", {}),
        error=ended.reason if ended.status == "failed" else note,
        exit_code=codes[ended.status],
    )


def outcome_of(folder: RunFolder, stop_code: int = 130) -> Outcome | None:
    """How a run ended that nobody followed, from its ledger; None if that does not say that it ended."""
    end = _last_word(folder)
    if end is None:
        return None
    entries, status = tail(folder.ledger), end["status"]
    commit = next((e for e in reversed(entries) if e["kind"] == "commit"), {})
    evaluation = next((e for e in reversed(entries) if e["kind"] == "evaluation"), {})
    latest = CheckpointStore(folder.read().get("checkpoint_uri") or folder.checkpoints).latest()
    return Outcome(
        status=status,
        run_id=folder.run_id,
        folder=str(folder.path),
        step=int(commit.get("step") or (latest.step if latest else 0)),
        metrics={**({"train/loss": commit["loss"]} if commit else {}), **evaluation.get("metrics", {})},
        checkpoint=latest.uri if latest else None,
        model=_model(folder, status),
        record=where_recorded(folder),
        cost=end.get("cost", {}),
        error=str(end.get("reason") or "") if status == "failed" else None,
        exit_code={"finished": 0, "failed": 1}.get(status, stop_code),
    )


def aborted(folder: RunFolder, stop: StopRequests) -> Outcome:
    """The outcome of a run that was stopped at once."""
    folder.update(status="stopped", reason="stopped at once by the user")
    return _without_end(folder, "stopped", "stopped at once; steps since the last checkpoint are lost", stop.exit_code)


def died(folder: RunFolder, error: Exception) -> Outcome:
    """The outcome of a run whose coordinator does not answer any more: somebody else may have seen it end."""
    seen = outcome_of(folder)
    if seen is not None:
        return seen
    reason = (
        f"the coordinator died ({str(error).splitlines()[0]}); continue from the last checkpoint with: "
        f"shoal resume {folder.run_id}"
    )
    folder.update(status="failed", reason=reason)
    return _without_end(folder, "failed", reason, TrainingFailed.exit_code)


def _without_end(folder: RunFolder, status: Any, error: str, exit_code: int) -> Outcome:
    latest = CheckpointStore(folder.read().get("checkpoint_uri") or folder.checkpoints).latest()
    return Outcome(
        status=status,
        run_id=folder.run_id,
        folder=str(folder.path),
        step=latest.step if latest else 0,
        checkpoint=latest.uri if latest else None,
        record=where_recorded(folder),
        error=error,
        exit_code=exit_code,
    )


def _model(folder: RunFolder, status: str) -> str | None:
    return folder.read().get("export_uri") if status == "finished" else None


def _last_word(folder: RunFolder) -> Entry | None:
    """The `end` of the run, if it is the ledger's last entry."""
    entries = tail(folder.ledger, 1 << 14)
    return entries[-1] if entries and entries[-1]["kind"] == "end" else None
