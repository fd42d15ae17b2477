"""Job servers that are dead, silent, or refuse: each is told within its deadline, in words that help."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shoal.cli.main import run
from shoal.errors import CapacityError, ConfigError
from shoal.submit import jobs
from shoal.submit.jobs import connect, within

pytestmark = pytest.mark.unit

Answer = Callable[[str], tuple[int, object]]
SOON_S = 8.0


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Start an HTTP server that answers a path as it is told; returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, said = answer(self.path)
                body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def dead() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def version_or(then: Answer) -> Answer:
    def answer(path: str) -> tuple[int, object]:
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""}
        return then(path)

    return answer


@pytest.mark.parametrize("scheme", ["http://", "https://", "", "ray://"])
def test_a_dead_address(scheme: str) -> None:
    begun = time.monotonic()
    with pytest.raises(CapacityError, match=r"nothing answers at .*ray dashboard.*kubectl port-forward"):
        connect(f"{scheme}{dead()}", {})
    assert time.monotonic() - begun < SOON_S


def test_an_address_that_does_not_exist() -> None:
    with pytest.raises(CapacityError, match=r"nothing answers at http://no-such-host\.invalid:8265"):
        connect("http://no-such-host.invalid:8265", {})
    with pytest.raises(ConfigError, match="is no address"):
        connect("http://host:port", {})


def test_a_server_that_says_nothing(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWER_S", 0.5)
    begun = time.monotonic()
    with pytest.raises(CapacityError, match="does not answer"):
        connect(silent, {})
    assert time.monotonic() - begun < SOON_S


@pytest.mark.parametrize(
    ("status", "body"),
    [(401, "Unauthorized: Missing authentication token"), (403, "Forbidden: Invalid authentication token")],
)
def test_a_token_that_is_missing_or_no_longer_taken(serve: Callable[[Answer], str], status: int, body: str) -> None:
    with pytest.raises(ConfigError, match=f"refuses this machine: .*{body}.*ray get-auth-token"):
        connect(serve(lambda path: (status, body)), {})


def test_a_token_that_expires_on_the_way(serve: Callable[[Answer], str]) -> None:
    server = connect(serve(version_or(lambda path: (403, "Forbidden: Invalid authentication token"))), {})
    with pytest.raises(ConfigError, match="refuses this machine"):
        server.look("a")
    with pytest.raises(ConfigError, match="refuses this machine"):
        server.follow("a", lambda text: None)


@pytest.mark.parametrize("answer", [(404, "not found"), (200, "<html>hello</html>"), (503, "busy")])
def test_what_is_no_job_server(serve: Callable[[Answer], str], answer: tuple[int, object]) -> None:
    with pytest.raises((CapacityError, ConfigError)) as raised:
        connect(serve(lambda path: answer), {})
    assert "http://127.0.0.1" in str(raised.value)
    assert len(str(raised.value)) < 400


def test_an_unknown_job(serve: Callable[[Answer], str]) -> None:
    server = connect(serve(version_or(lambda path: (404, "Job a does not exist"))), {})
    for ask in (server.look, server.stop, lambda name: server.follow(name, lambda text: None)):
        with pytest.raises(ConfigError, match="has no such job; all that it has: shoal submit --list"):
            ask("a")


def test_a_server_that_falls_silent(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    server = connect(serve(version_or(lambda path: (200, over.wait(30)))), {})
    monkeypatch.setattr(jobs, "ANSWER_S", 0.3)
    with pytest.raises(CapacityError, match="does not answer"):
        server._ask(server._client.list_jobs, 0.3)
    over.set()


def test_the_address_that_was_named_counts_whatever_the_environment_says(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    there = serve(version_or(lambda path: (200, [])))
    assert connect(there, {}).list() == []
    assert connect(there.removeprefix("http://"), {}).list() == [], "the scheme is found out"
    assert connect(None, {"RAY_API_SERVER_ADDRESS": there, "RAY_ADDRESS": "http://127.0.0.1:1"}).list() == []
    assert connect(None, {"RAY_ADDRESS": there}).list() == []
    with pytest.raises(CapacityError, match=r"127\.0\.0\.1:1 "):
        connect(None, {"RAY_ADDRESS": "http://127.0.0.1:1"})


def test_a_password_in_the_address_is_not_shown(serve: Callable[[Answer], str]) -> None:
    there = serve(version_or(lambda path: (404, "Job a does not exist"))).replace("//", "//me:hunter2@")
    server = connect(there, {})
    assert "hunter2" not in server.address
    for ask in (lambda: server.look("a"), lambda: connect(f"http://me:hunter2@{dead()}", {})):
        with pytest.raises((ConfigError, CapacityError)) as raised:
            ask()
        assert "hunter2" not in str(raised.value)


def test_the_command_tells_a_dead_address_in_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert run(["submit", "jobs/gpt.py", "--address", f"http://{dead()}", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["type"] == "error"
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


def test_modes_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["submit", "--list", "--stop", "a"]) == 2
    assert run(["submit", "jobs/gpt.py", "--follow", "a"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_within_gives_what_it_has_and_never_waits_longer() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError, match="a"):
        within(5, lambda: {}["a"])
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.1, threading.Event().wait)
    assert time.monotonic() - begun < 2
