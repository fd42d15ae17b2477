"""Azure: scheduled events (a spot machine is evicted, a scale set shrinks, maintenance), from the metadata service.

Format: Azure documentation, "Scheduled Events for Linux VMs" (API version 2020-07-01). `Preempt` comes 30 seconds
before the end, `Terminate` 5 to 15 minutes, as the user has chosen. The first question of a machine may take two
minutes, because it switches the service on.
"""

from __future__ import annotations

import json
import re
from email.utils import parsedate_to_datetime
from typing import Any

from shoal.notices.notice import Ask, Notice, Request, understood

EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
PLACE = "/metadata/instance/compute/azEnvironment?api-version=2021-02-01&format=text"
NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
METADATA = {"Metadata": "true"}
FIRST_S = 120.0
LEAST_S = 30.0
"""The shortest notice; for an event that does not say when it will begin."""
ENDING = ("Preempt", "Terminate", "Redeploy", "Reboot")
"""`Freeze`, the other one, is a pause of seconds."""
COMING = ("Scheduled", "Started")


class Azure:
    """Sees the events of all machines of its group, and picks those that concern this one."""

    name = "Azure"

    def __init__(self) -> None:
        self._machine = ""
        self._answered = False

    async def is_here(self, ask: Ask) -> bool:
        """Whether it knows in which of Azure's clouds it is."""
        answer = await ask(Request(PLACE, METADATA))
        return answer.status == 200 and answer.body.strip().startswith("Azure")

    async def look(self, ask: Ask, now: float) -> Notice | None:
        """See `Provider.look`."""
        if not self._machine:
            self._machine = machine_name(understood(await ask(Request(NAME, METADATA)), "the machine's name").body)
        first = 0.0 if self._answered else FIRST_S
        answer = understood(await ask(Request(EVENTS, METADATA, holds_s=first)), "scheduled events")
        self._answered = True
        return event(answer.body, self._machine, now)


def machine_name(body: str) -> str:
    """The name by which events call this machine. Raises ValueError for what cannot be one: kept, it would make the
    watcher deaf."""
    if not re.fullmatch(r"[\w.-]{1,128}", name := body.strip()):
        raise ValueError(f"{body[:200]!r} is no name of a machine")
    return name


def event(body: str, machine: str, now: float) -> Notice | None:
    """The first event that ends `machine`, of `{"DocumentIncarnation": 1, "Events": [{"EventId": ..., "EventType":
    "Preempt", "EventStatus": "Scheduled", "ResourceType": "VirtualMachine", "Resources": ["name"], "NotBefore":
    "Mon, 19 Sep 2016 18:29:47 GMT", ...}]}`.

    `NotBefore` is empty once it has begun. Raises ValueError for anything else.
    """
    said = json.loads(body)
    events = said.get("Events") if isinstance(said, dict) else None
    if not isinstance(events, list) or not all(isinstance(e, dict) for e in events):
        raise ValueError(f"no list of scheduled events: {body[:200]!r}")
    mine = [e for e in events if _concerns(e, machine)]
    found = [Notice(f"Azure event {e['EventType']} ({e.get('EventId', '')})", _begins(e, now)) for e in mine]
    return min(found, key=lambda n: n.deadline, default=None)


def _concerns(event: dict[str, Any], machine: str) -> bool:
    ends = event.get("EventType") in ENDING and event.get("EventStatus", "Scheduled") in COMING
    return ends and machine.lower() in [str(name).lower() for name in event.get("Resources") or ()]


def _begins(event: dict[str, Any], now: float) -> float:
    if event.get("EventStatus") == "Started":
        return now
    try:
        return parsedate_to_datetime(str(event.get("NotBefore"))).timestamp()
    except ValueError:
        return now + LEAST_S
