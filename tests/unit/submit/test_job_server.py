"""Job servers that are dead, silent, or refuse: each is told within its deadline, in words that help."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiohttp import web

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


class Talking:
    """A job server that tells a log, and whose connections break where the test says."""

    def __init__(self, *tellings: tuple[list[str], str]) -> None:
        """Each: what one connection tells, and how it ends then: `break`, `close`, or `hang`."""
        self.tellings, self.status, self.connections = list(tellings), "RUNNING", 0

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0"})

    async def job(self, request: web.Request) -> web.Response:
        if self.connections >= len(self.tellings):
            self.status = "SUCCEEDED"
        return web.json_response(
            {"type": "SUBMISSION", "submission_id": "a", "status": self.status, "entrypoint": "shoal train"}
        )

    async def log(self, request: web.Request) -> web.StreamResponse:
        line = web.WebSocketResponse()
        await line.prepare(request)
        chunks, then = self.tellings[min(self.connections, len(self.tellings) - 1)]
        self.connections += 1
        for chunk in chunks:
            await line.send_str(chunk)
        if then == "break":
            assert request.transport is not None
            request.transport.abort()
        elif then == "hang":
            await asyncio.sleep(30)
        else:
            await line.close()
        return line


@pytest.fixture
def talking() -> Iterator[Callable[[Talking], str]]:
    """Serve a `Talking`; returns its address."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    runners: list[web.AppRunner] = []

    async def up(told: Talking) -> str:
        app = web.Application()
        app.router.add_get("/api/version", told.version)
        app.router.add_get("/api/jobs/a", told.job)
        app.router.add_get("/api/jobs/a/logs/tail", told.log)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield lambda told: asyncio.run_coroutine_threadsafe(up(told), loop).result(10)
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)


def test_a_broken_connection_is_found_again_and_nothing_is_said_twice(talking: Callable[[Talking], str]) -> None:
    told = Talking((["one\n", "tw"], "break"), (["one\ntwo\n"], "close"), (["one\ntwo\nthree\n"], "close"))
    heard: list[str] = []
    job = connect(talking(told), {}).follow("a", heard.append)
    assert "".join(heard) == "one\ntwo\nthree\n"
    assert job.status == "succeeded"
    assert told.connections == 3


def test_a_connection_that_hangs_does_not_hide_the_end(
    talking: Callable[[Talking], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = connect(talking(Talking((["one\n"], "hang"))), {})
    monkeypatch.setattr(jobs, "ANSWER_S", 0.5)
    heard: list[str] = []
    begun = time.monotonic()
    assert server.follow("a", heard.append).status == "succeeded"
    assert heard == ["one\n"]
    assert time.monotonic() - begun < SOON_S


def test_a_server_that_stays_away_ends_the_following_and_not_the_job(
    talking: Callable[[Talking], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Talking(*[([], "break")] * 1000)
    server = connect(talking(told), {})
    monkeypatch.setattr(jobs, "LOST_S", 1.5)
    with pytest.raises(CapacityError, match=r"The job goes on .*shoal submit --follow a"):
        server.follow("a", lambda text: None)
    assert told.connections > 1, "it was looked for more than once"


def test_only_json_is_on_stdout(talking: Callable[[Talking], str], capsys: pytest.CaptureFixture[str]) -> None:
    told = Talking((['Running entrypoint\n{"type": "sta', 'rted"}\nby hand\n'], "close"))
    assert run(["submit", "--follow", "a", "--json", "--address", talking(told)]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["type"] for line in said.out.splitlines()] == ["started", "job"]
    assert said.err == "Running entrypoint\nby hand\n"
