"""Ray's job API, as `shoal submit` uses it: every call has a deadline, and every refusal says what to do.

A job belongs to the cluster from the moment that it is accepted: whoever sent it may go.
"""

from __future__ import annotations

import asyncio
import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from shoal.errors import CapacityError, ConfigError, ShoalError
from shoal.launch.cluster import reach
from shoal.ray_compat import job_client
from shoal.submit.sending import Submission

T = TypeVar("T")

DEFAULT_ADDRESS = "http://localhost:8265"
"""Where `ray dashboard` and `kubectl port-forward` bring a cluster's dashboard."""
ANSWER_S = 10.0
"""A server that takes longer for one answer hangs."""
UPLOAD_S = 900.0
"""Ray takes folders of half a GiB; that much at less than 5 Mbit/s is not waited for."""
LOST_S = 60.0
"""How long a server may be away, for example to be started again, before following it is given up."""

Status = Literal["pending", "running", "stopped", "succeeded", "failed"]
OVER: tuple[Status, ...] = ("stopped", "succeeded", "failed")


@dataclass(frozen=True, slots=True)
class SentJob:
    """One job of a cluster, as its server tells it."""

    name: str
    status: Status
    command: str
    message: str
    started: float | None
    """Unix seconds."""
    ended: float | None

    @property
    def over(self) -> bool:
        return self.status in OVER


@dataclass(frozen=True, slots=True)
class JobServer:
    """The job server of one cluster. Raises ConfigError for what it refuses, CapacityError if it does not answer."""

    address: str
    _client: Any

    def submit(self, submission: Submission) -> str:
        """Send a job; returns its id."""
        return self._ask(
            lambda: self._client.submit_job(
                entrypoint=shlex.join(submission.command),
                submission_id=submission.name,
                runtime_env=submission.runtime_env,
            ),
            UPLOAD_S,
        )

    def look(self, name: str) -> SentJob:
        """How a job stands."""
        return _sent(self._ask(lambda: self._client.get_job_info(name)))

    def list(self) -> list[SentJob]:
        """All jobs that were ever submitted to this cluster, the latest first."""
        known = [_sent(one) for one in self._ask(self._client.list_jobs) if one.submission_id]
        return sorted(known, key=lambda job: job.started or 0.0, reverse=True)

    def stop(self, name: str) -> bool:
        """Ask a job to end, with a checkpoint; False: it was over."""
        return self._ask(lambda: self._client.stop_job(name))

    def follow(self, name: str, write: Callable[[str], object]) -> SentJob:
        """Write what a job says, from its beginning, until it is over; returns how it ended.

        A server that goes away for less than a minute is found again, and nothing is written twice.
        """
        import aiohttp

        self.look(name)
        tail, lost_since = _Tail(self, name, write), None
        while True:
            try:
                asyncio.run(tail.run())
                job, lost_since = self.look(name), None
                if job.over:
                    return job
            except (CapacityError, OSError, RuntimeError, aiohttp.ClientError) as error:
                lost_since = lost_since or time.monotonic()
                if time.monotonic() - lost_since > LOST_S:
                    raise CapacityError(
                        f"the job server at {self.address} has not answered for {LOST_S:.0f}s ({_line(error)}). The "
                        f"job goes on as long as its cluster does; follow it again with: shoal submit --follow {name}"
                    ) from None
            time.sleep(1.0)

    def _ask(self, call: Callable[[], T], deadline_s: float = ANSWER_S) -> T:
        with _told(self.address):
            return within(deadline_s, call)


class _Tail:
    """Follows the log of one job over any number of connections; each of them tells it from the beginning."""

    def __init__(self, server: JobServer, name: str, write: Callable[[str], object]) -> None:
        self._server, self._name, self._write = server, name, write
        self._shown = 0

    async def run(self) -> None:
        """Until the job is over or the connection breaks."""
        stream, seen = self._server._client.tail_job_logs(self._name), 0
        while True:
            coming = asyncio.ensure_future(anext(stream, None))
            while not (await asyncio.wait({coming}, timeout=ANSWER_S))[0]:
                # A machine that vanished leaves the connection open; one that is there answers.
                if self._server.look(self._name).over:
                    coming.cancel()
                    return
            text = coming.result()
            if text is None:
                return
            new = text[max(0, self._shown - seen) :]
            seen += len(text)
            self._shown = max(self._shown, seen)
            if new:
                self._write(new)


def connect(address: str | None, here: Mapping[str, str]) -> JobServer:
    """The job server at `address` (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else this machine's).

    Raises CapacityError within seconds if nothing answers there, ConfigError if it refuses us.
    """
    wanted = address or here.get("RAY_API_SERVER_ADDRESS") or here.get("RAY_ADDRESS") or DEFAULT_ADDRESS
    url = _dashboard(wanted)
    with _told(_shown(url)):
        return JobServer(_shown(url), within(2 * ANSWER_S, lambda: job_client(url)))


def _dashboard(address: str) -> str:
    """`address`, with `http://` where a dashboard answers at `host:port`. Raises CapacityError if nothing does."""
    scheme, _, rest = address.rpartition("://")
    if scheme and scheme not in ("http", "https", "ray"):
        return address  # a service of others that Ray knows how to reach
    try:
        host = urlsplit(address if scheme else f"http://{address}")
        port = host.port or {"https": 443, "http": 80}.get(scheme)
    except ValueError as error:
        raise ConfigError(
            f"--address {_shown(address)} is no address ({error}); write it as http://host:8265"
        ) from None
    if address == "auto" or (scheme == "" and port is None):
        return address  # Ray looks for it
    try:
        reach(f"{host.hostname}:{port}")
    except OSError as error:
        raise CapacityError(
            f"nothing answers at {_shown(address)} ({_line(error)}). The address is that of the cluster's "
            f"dashboard; bring it here with `ray dashboard CLUSTER.yaml` or `kubectl port-forward "
            f"service/NAME-head-svc 8265`, and say --address {DEFAULT_ADDRESS}"
        ) from None
    return address if scheme or not _speaks_http(rest) else f"http://{rest}"


def _speaks_http(place: str) -> bool:
    import requests

    try:
        return requests.get(f"http://{place}/api/version", timeout=ANSWER_S).status_code < 500
    except requests.RequestException:
        return False  # the address of the cluster itself, which Ray can ask for its dashboard's


def within(deadline_s: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises; TimeoutError if it takes longer. Ray's client waits for ever otherwise."""
    done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((True, call()))
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the thread that waits for it
            done.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        good, value = done.get(timeout=deadline_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {deadline_s:.0f}s") from None
    if good:
        return value
    raise value


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into our errors."""
    import ray
    import requests

    try:
        yield
    except ShoalError:
        raise
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(
            f"the cluster at {address} refuses this machine: {_line(error)}. Its token may have changed, or never been "
            f"here: on the head node, `ray get-auth-token` shows it; put it into ~/.ray/auth_token here (or its path "
            f"into RAY_AUTH_TOKEN_PATH) and set RAY_AUTH_MODE=token"
        ) from None
    except requests.HTTPError as error:
        raise CapacityError(f"{address} is no job server of Ray's: {_line(error)}; look at --address") from None
    except (ConnectionError, requests.RequestException, TimeoutError) as error:
        raise CapacityError(
            f"the job server at {address} does not answer ({_line(error)}); look at --address, and whether the cluster "
            f"is up"
        ) from None
    except (RuntimeError, ValueError) as error:
        raise ConfigError(_refusal(address, str(error))) from None


def _refusal(address: str, said: str) -> str:
    """Words for what a server has refused; Ray has only text for it, sometimes with the server's traceback."""
    if "already exists" in said:
        return f"there is a job of that name at {address} already; choose another --name, or leave it out"
    if "does not exist" in said or "status code 404" in said:
        return f"the cluster at {address} has no such job; all that it has: shoal submit --list"
    if "maximum size" in said or "status code 413" in said:
        return (
            f"the folder is too large to be sent ({said.splitlines()[0].partition('. To ')[0]}); leave data out with "
            f"--exclude PATTERN or .rayignore, and keep it in storage that the cluster reaches"
        )
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return f"the cluster at {address} refuses the job: {lines[-1] if lines else said}"


def _sent(info: Any) -> SentJob:
    return SentJob(
        name=info.submission_id or info.job_id,
        status=info.status.value.lower(),
        command=info.entrypoint,
        # Ray adds the end of the log to its word, which whoever follows has seen.
        message=(info.message or "").partition(", last available logs")[0].partition("\n")[0],
        started=info.start_time / 1e3 if info.start_time else None,
        ended=info.end_time / 1e3 if info.end_time else None,
    )


def _shown(address: str) -> str:
    """`address` without a password."""
    parts = urlsplit(address) if "://" in address else None
    return address.replace(f":{parts.password}@", ":***@") if parts and parts.password else address


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
