"""MLflow's UI on the record of this folder, and links into it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shoal.errors import ConfigError, ShoalError
from shoal.locks import file_lock
from shoal.run_folder import RunFolder
from shoal.tracking.runs import newest_run
from shoal.tracking.settings import is_server
from shoal.tracking.store import ENVIRONMENT, lock_path

LOCAL = ("127.0.0.1", "localhost", "::1")
TRAINING = "workflowType=machine_learning"
"""MLflow's UI opens on GenAI; this turns it to model training, and it stays so."""
_START_S = 120.0
_STOP_S = 5.0
_TRIED_PORTS = 50


def serve_ui(
    root: Path,
    host: str = "127.0.0.1",
    port: int = 5000,
    *,
    say: Callable[[str], None] = print,
    further: Callable[[str], Mapping[str, str]] | None = None,
) -> int:
    """Serve MLflow's UI on `<root>/mlflow.db` until Ctrl-C or SIGTERM; returns the exit code.

    A taken port is replaced by the next free one. Lines for the user, the link to the newest run first, go to `say`;
    `further` may add links, {what: address}, given the address of the UI.
    Raises ConfigError if nothing was recorded there yet, ShoalError if the server does not come up.
    """
    database = Path(root).absolute() / "mlflow.db"
    if not database.exists():
        raise ConfigError(
            f"there is no record at {database} yet; train something first, or say with --runs where the runs are. "
            f"Runs that were recorded on a server are seen there"
        )
    # A run that starts right now may be making the tables.
    with file_lock(lock_path(database), _START_S):
        pass
    free = free_port(host, port)
    if free != port:
        say(f"port {port} is taken; using {free}")
    shown = host if host not in ("0.0.0.0", "::") else socket.gethostname()
    base = f"http://{f'[{shown}]' if ':' in shown else shown}:{free}"
    log = database.with_name("mlflow-ui.log")
    with _server(database, host, free, log) as server:
        try:
            _wait_until_up(server, host, free, log)
            newest = newest_run(root)
            say(f"MLflow UI: {chart_link(newest, base) if newest else base}")
            if newest and (link := record_link(newest, base)) != base:
                say(f"newest run: {link}")
            for what, address in (further(base) if further else {}).items():
                say(f"{what}: {address}")
            say("Ctrl-C ends it")
            return server.wait()
        except KeyboardInterrupt:
            return 0


def record_link(folder: RunFolder, base_url: str) -> str:
    """Address of the run's page under `base_url`; `base_url` itself if the run is not in MLflow yet."""
    place = _place(folder)
    base = base_url.rstrip("/")
    return f"{base}/#/experiments/{place['experiment_id']}/runs/{place['run_id']}?{TRAINING}" if place else base


def chart_link(folder: RunFolder, base_url: str) -> str:
    """Address of the curves of all runs in the run's experiment, the newest run first."""
    place = _place(folder)
    base = base_url.rstrip("/")
    query = f"{TRAINING}&orderByKey=attributes.start_time&orderByAsc=false&compareRunsMode=CHART"
    return f"{base}/#/experiments/{place['experiment_id']}/runs?{query}" if place else base


def where_recorded(folder: RunFolder) -> str:
    """What to tell the user: the run's address if it is on a server, else the command that shows it."""
    place = _place(folder)
    if place and is_server(str(place["uri"])):
        return record_link(folder, str(place["uri"]))
    return f"shoal ui --runs {folder.root}"


def free_port(host: str, port: int) -> int:
    """`port`, or the first free one behind it. ConfigError if there is none, or `host` is not this machine's."""
    for candidate in range(port, min(port + _TRIED_PORTS, 65536)):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
                return candidate
            except PermissionError:
                raise ConfigError(f"port {candidate} needs more rights than you have; choose one above 1023") from None
            except socket.gaierror as error:
                raise ConfigError(f"host {host!r} is unknown ({error.strerror}); use 127.0.0.1 or 0.0.0.0") from None
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:
                    raise ConfigError(f"host {host} is not an address of this machine; use 127.0.0.1") from None
    raise ConfigError(f"ports {port} to {port + _TRIED_PORTS - 1} are all taken; choose another one with --port")


def _place(folder: RunFolder) -> dict[str, Any]:
    return folder.read().get("mlflow") or {}


@contextmanager
def _server(database: Path, host: str, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server as a child in a session of its own, so that Ctrl-C reaches us alone and we end it in order."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}"]
    command += ["--default-artifact-root", str(database.parent / "artifacts"), "--host", host, "--port", str(port)]
    command += ["--workers", "1"]
    if host not in LOCAL:
        # MLflow answers only to names it knows; whoever opens the UI to the network means all of them.
        command += ["--allowed-hosts", "*", "--cors-allowed-origins", "*"]
    environment = {**os.environ, **ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield server
    finally:
        signal.signal(signal.SIGTERM, before)
        _end(server)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the workers it started: asked first, then at once."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        server.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _wait_until_up(server: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            code = server.returncode
            raise ShoalError(f"MLflow's server ended at its start with code {code}; its output is in {log}")
        try:
            with urllib.request.urlopen(f"http://{reachable}:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise ShoalError(f"MLflow's server did not answer within {_START_S:.0f} s; its output is in {log}")
