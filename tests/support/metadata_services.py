"""A local HTTP server that behaves like the metadata service of AWS, Google Cloud or Azure, or misbehaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

How = Literal["well", "hangs", "drips", "garbage", "fails"]
"""hangs: takes the question and never answers. drips: a byte of its answer now and then. garbage: HTML with status 200,
as from a captive portal. fails: status 503."""


class MetadataService:
    """What the server knows, and how it behaves. Change it while it runs."""

    def __init__(self, provider: Literal["aws", "gcp", "azure"]) -> None:
        self.provider = provider
        self.how: How = "well"
        self.url = ""
        self.asked: list[str] = []
        """Paths, in order."""
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self.deadline: float | None = None
        """When the machine goes, in Unix seconds; None: nobody has said so."""
        self.action = "terminate"
        self.rebalance = self.maintenance = False
        self.machine = "pool_3"
        self.events: list[dict[str, Any]] = []
        """Azure: events of other machines."""
        self.tokens = 0
        self.valid = ""

    def take(self, deadline: float) -> None:
        """Announce that the machine goes."""
        with self.changed:
            self.deadline = deadline
            self.changed.notify_all()

    def expire_token(self) -> None:
        """AWS: the session token is no longer good."""
        self.valid = ""

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str, dict[str, str]]:
        """(status, body, headers)."""
        found = getattr(self, f"_{self.provider}")(method, urlsplit(path).path, parse_qs(urlsplit(path).query), headers)
        return found if found is not None else (404, "not found", {})

    def _aws(self, method: str, path: str, _: Any, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers.get("x-aws-ec2-metadata-token-ttl-seconds", "0")) <= 21600:
                return 400, "", {}
            self.tokens += 1
            self.valid = f"token-{self.tokens}"
            return 200, self.valid, {}
        if headers.get("x-aws-ec2-metadata-token") != self.valid or not self.valid:
            return 401, "Unauthorized", {}
        if path == "/latest/meta-data/spot/instance-action" and self.deadline is not None:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.deadline))
            return 200, json.dumps({"action": self.action, "time": at}), {}
        if path == "/latest/meta-data/events/recommendations/rebalance" and self.rebalance:
            return 200, '{"noticeTime": "2020-10-27T08:22:00Z"}', {}
        return None

    def _gcp(
        self, method: str, path: str, query: Any, headers: dict[str, str]
    ) -> tuple[int, str, dict[str, str]] | None:
        if headers.get("metadata-flavor") != "Google":
            return 403, "Missing Metadata-Flavor:Google header.", {}
        ours = {"Metadata-Flavor": "Google"}
        if path == "/computeMetadata/v1/instance/maintenance-event":
            return 200, "TERMINATE_ON_HOST_MAINTENANCE" if self.maintenance else "NONE", ours
        if path != "/computeMetadata/v1/instance/preempted":
            return None
        if "wait_for_change" in query and query.get("last_etag", [""])[0] == self._mark():
            known = self._mark()
            with self.changed:
                self.changed.wait_for(lambda: self._mark() != known, timeout=float(query["timeout_sec"][0]))
        return 200, "FALSE" if self.deadline is None else "TRUE", {**ours, "ETag": self._mark()}

    def _mark(self) -> str:
        return f"mark{self.deadline}"

    def _azure(self, method: str, path: str, _: Any, headers: dict[str, str]) -> tuple[int, str, dict[str, str]] | None:
        if headers.get("metadata") != "true":
            return 400, '{"error": "Required metadata header not specified"}', {}
        if path == "/metadata/instance/compute/azEnvironment":
            return 200, "AzurePublicCloud", {}
        if path == "/metadata/instance/compute/name":
            return 200, self.machine, {}
        if path != "/metadata/scheduledevents":
            return None
        mine = [] if self.deadline is None else [azure_event("Preempt", self.machine, self.deadline)]
        return 200, json.dumps({"DocumentIncarnation": 1, "Events": [*self.events, *mine]}), {}


def azure_event(kind: str, machine: str, begins: float, **changes: Any) -> dict[str, Any]:
    """An event as Azure documents it."""
    event = {
        "EventId": "f020ba2e-3bc0-4c40-a10b-86575a9eabd5",
        "EventStatus": "Scheduled",
        "EventType": kind,
        "ResourceType": "VirtualMachine",
        "Resources": [machine],
        "NotBefore": formatdate(begins, usegmt=True),
        "Description": "",
        "EventSource": "Platform",
        "DurationInSeconds": -1,
    }
    return {**event, **changes}


@contextmanager
def metadata_service(provider: Literal["aws", "gcp", "azure"]) -> Iterator[MetadataService]:
    """One that runs, on a port of this machine."""
    service = MetadataService(provider)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            service.asked.append(self.path)
            if service.how == "hangs":
                service.closing.wait()
                return
            status, body, said = service.answer(self.command, self.path, headers)
            if service.how == "garbage":
                status, body, said = 200, "<html>Sign in to the network</html>", {}
            elif service.how == "fails":
                status, body, said = 503, "try again", {}
            if service.how == "drips":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not service.closing.wait(0.1):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                return
            self.send_response(status)
            for name, value in said.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_PUT = do_GET

        def handle(self) -> None:
            with suppress(OSError):  # whoever asked has lost patience
                super().handle()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.closing.set()
        server.shutdown()
        server.server_close()
