"""A line to a run that goes on in another process: where it stands, who takes part, and the wishes of its user."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from shoal.coordinator.status import Display, MemberStatus, Outcome, RunStatus
from shoal.errors import CapacityError, ConfigError, RunOver
from shoal.launch.cluster import reach
from shoal.launch.signals import StopRequests
from shoal.launch.supervise import NAMESPACE, POLL_S, Post, aborted, answer, died, follow, outcome, outcome_of
from shoal.launch.supervise import reach as reach_post
from shoal.ray_compat import quiet_driver, use_auth_mode
from shoal.run_folder import RunFolder
from shoal.tracking.runs import LIVE, summarize

CONNECT_S = 30.0
"""Until a run that has just been started must have its coordinator."""
NEWS = -20
"""How many of the latest events someone sees who comes later."""


@dataclass(frozen=True, slots=True)
class Line:
    """Speaks to the coordinator of one run. What it refuses is raised as ConfigError."""

    _post: Post

    @property
    def run_id(self) -> str:
        """The run that it leads to."""
        return self._post.run_id

    def status(self) -> RunStatus:
        """Where the run stands. To ask does not keep a run alive whose submitter is gone."""
        return self._ask("status", None)[0]

    def members(self) -> tuple[MemberStatus, ...]:
        """All workers, the members of the view first."""
        return self._ask("members")

    def scale(self, low: int, high: int) -> str:
        """Train with `low` to `high` workers from now on; returns what will happen."""
        return self._ask("scale", low, high)

    def end_worker(self, member: str, how: Literal["kill", "leave"]) -> str:
        """Kill a worker, or let it leave at the next boundary; returns what will happen."""
        return self._ask("end_worker", member, how)

    def stop(self, reason: str) -> None:
        """End the run at the next boundary, with a checkpoint."""
        self._ask("stop", reason)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            return answer(self._post.ask(method, *arguments))
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, RunOver):
            raise ConfigError(
                f"the coordinator of run {self.run_id} does not answer: the run ended just now, or it is being started "
                f"again; look with `shoal status {self.run_id}`"
            ) from None

    def follow(self, folder: RunFolder, display: Display) -> Outcome:
        """Show the run until its end, as the command that started it would."""
        import ray

        said = folder.read()
        # Inside the connection, because Ray's own handlers come with it and would end this process at the first signal.
        with StopRequests() as stop:
            display.started({"run_id": self.run_id, "folder": str(folder.path), "total_steps": said.get("total_steps")})
            try:
                ended = follow(self._post, display, stop, after=NEWS)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, RunOver) as error:
                return died(folder, error)
            if ended is None:
                self._post.end()
                return aborted(folder, stop)
            return outcome(folder, ended, stop.exit_code)


@contextmanager
def line_to(folder: RunFolder, *, instead: str = "") -> Iterator[Line]:
    """Connect to a run that goes on.

    Raises ConfigError if it does not go on (`instead`: what to do then), CapacityError if its cluster does not answer.
    """
    require_running(folder, instead)
    said = folder.read()
    with _connection(folder.run_id, str(said.get("address") or ""), str(said.get("auth") or "")):
        yield Line(_post(folder, instead))


def is_running(folder: RunFolder) -> bool:
    """Whether the run goes on, as far as its files say."""
    return summarize(folder, folder.read()).status in LIVE


def require_running(folder: RunFolder, instead: str = "") -> None:
    """Raise ConfigError unless the run goes on; the message says how it stands, and what to do."""
    run = summarize(folder, folder.read())
    if run.status in LIVE:
        return
    how = {"died": "its process is gone", "failed": "it failed", "stopped": "it was stopped", "finished": "it finished"}
    done = f"{run.step} of {run.total_steps}" if run.total_steps else str(run.step)
    remedy = instead or f"go on with: shoal resume {run.run_id}"
    if run.status == "finished":
        remedy = f"its numbers: shoal status {run.run_id}"
    raise ConfigError(f"run {run.run_id} is not running: {how[run.status]} after {done} steps; {remedy}")


def attach(folder: RunFolder, display: Display) -> Outcome:
    """Follow a run to its end, whoever started it; of one that is over, its outcome.

    Raises ConfigError if it neither goes on nor ended, CapacityError if its cluster cannot be reached.
    """
    ended = _ended(folder)
    if ended is None:
        try:
            with line_to(folder) as line:
                ended = line.follow(folder, display)
        except (ConfigError, CapacityError):
            ended = _ended(folder)  # it may have ended while we were on the way to it
            if ended is None:
                raise
    display.finished(ended)
    return ended


def _ended(folder: RunFolder) -> Outcome | None:
    """The outcome of a run that is over."""
    return None if is_running(folder) else outcome_of(folder)


@contextmanager
def _connection(run_id: str, address: str, auth: str) -> Iterator[None]:
    """Join the run's cluster: quietly, in half a second, and without shipping code."""
    use_auth_mode(auth)
    import ray

    if ray.is_initialized():
        yield
        return
    if not address:
        raise ConfigError(f"run {run_id} has not reached its cluster yet; try again in a moment")
    try:
        reach(address)
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise CapacityError(
            f"run {run_id} says that it runs in the Ray cluster at {address}, which cannot be reached from here "
            f"({error}). Ask from a machine of that cluster; if the cluster is gone, go on with: shoal resume {run_id}"
        ) from None
    quiet_driver()
    try:
        yield
    finally:
        ray.shutdown()


def _post(folder: RunFolder, instead: str) -> Post:
    deadline = time.monotonic() + CONNECT_S
    while (found := reach_post(folder.run_id)) is None:
        require_running(folder, instead)
        if folder.read().get("status") != "starting" or time.monotonic() > deadline:
            raise ConfigError(
                f"run {folder.run_id} has no coordinator in its cluster any more, so it does not go on; "
                f"{instead or f'go on with: shoal resume {folder.run_id}'}"
            )
        time.sleep(POLL_S)
    return found
