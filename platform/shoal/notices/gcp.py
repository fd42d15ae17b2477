"""Google Cloud: preemption and maintenance, from the metadata server.

Formats: Compute Engine documentation, "Preemptible VM instances" and "Spot VMs" (`preempted`, 30 seconds before the
end), "Query metadata server for maintenance event notices" (`maintenance-event`, 60 seconds before, an hour for some
machines with GPUs; only for those who have asked before), "About VM metadata" (`wait_for_change`).
"""

from __future__ import annotations

from urllib.parse import quote

from shoal.notices.notice import Answer, Ask, Notice, Request, understood

ROOT = "/computeMetadata/v1/instance"
FLAVOR = {"Metadata-Flavor": "Google"}
PREEMPTED_S, MAINTENANCE_S = 30.0, 60.0
"""What is promised between a notice and the end."""
QUIET = ("NONE", "MIGRATE_ON_HOST_MAINTENANCE")
"""A machine that is moved while it runs goes on after a pause of seconds at most."""


class Gcp:
    """Lets the server answer at the moment of the change, instead of asking again and again."""

    name = "GCP"

    def __init__(self, wait_s: float = 2.0) -> None:
        """`wait_s`: for how long the server may keep its answer back if nothing changes; in between maintenance is
        looked at."""
        self._wait_s = wait_s
        self._mark = ""

    async def is_here(self, ask: Ask) -> bool:
        """Whether the answer carries Google's header."""
        return _is_googles(await ask(Request(f"{ROOT}/preempted", FLAVOR)))

    async def look(self, ask: Ask, now: float) -> Notice | None:
        """See `Provider.look`."""
        waiting = f"?wait_for_change=true&timeout_sec={self._wait_s:.0f}&last_etag={quote(self._mark)}"
        path = f"{ROOT}/preempted{waiting if self._mark else ''}"
        answer = await self._get(ask, Request(path, FLAVOR, holds_s=self._wait_s if self._mark else 0.0))
        found = preemption(answer.body, now)  # it may have come since: rather some seconds too soon than too late
        self._mark = answer.headers.get("etag", "")
        if found is not None:
            return found
        return maintenance((await self._get(ask, Request(f"{ROOT}/maintenance-event", FLAVOR))).body, now)

    async def _get(self, ask: Ask, request: Request) -> Answer:
        answer = understood(await ask(request), request.path)
        if not _is_googles(answer):
            raise ValueError("the answer lacks Google's header `Metadata-Flavor: Google`; it comes from somebody else")
        return answer


def preemption(body: str, now: float) -> Notice | None:
    """`TRUE` or `FALSE`. Raises ValueError for anything else."""
    said = body.strip().upper()
    if said not in ("TRUE", "FALSE"):
        raise ValueError(f"`preempted` is {body[:200]!r}, neither TRUE nor FALSE")
    return Notice("GCP preemption", now + PREEMPTED_S) if said == "TRUE" else None


def maintenance(body: str, now: float) -> Notice | None:
    """`NONE`, `MIGRATE_ON_HOST_MAINTENANCE` or `TERMINATE_ON_HOST_MAINTENANCE`. Raises ValueError for anything else."""
    said = body.strip().upper()
    if said in QUIET:
        return None
    if said != "TERMINATE_ON_HOST_MAINTENANCE":
        raise ValueError(f"`maintenance-event` is {body[:200]!r}, which is no event that is known")
    return Notice("GCP host maintenance", now + MAINTENANCE_S)


def _is_googles(answer: Answer) -> bool:
    return answer.status == 200 and answer.headers.get("metadata-flavor") == "Google"
