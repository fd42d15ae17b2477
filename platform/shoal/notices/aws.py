"""AWS: interruption of a spot instance, and the recommendation to rebalance, from the instance metadata service.

Formats: Amazon EC2 user guide, "Spot Instance interruption notices" and "EC2 instance rebalance recommendations"; the
session token: "Use the Instance Metadata Service" (version 2).
"""

from __future__ import annotations

import json
from datetime import datetime, timezone

from shoal.notices.notice import Answer, Ask, Notice, Request, understood

TOKEN = "/latest/api/token"
ACTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
TOKEN_S = 21600
NOTICE_S = 120.0
"""An interruption is announced so long before."""
ACTIONS = ("terminate", "stop", "hibernate")


class Aws:
    """Asks with a session token (IMDSv2), and gets a new one when the old one has expired."""

    name = "AWS"

    def __init__(self) -> None:
        self._token = ""

    async def is_here(self, ask: Ask) -> bool:
        """Whether it gives a session token: nobody else's service knows that path."""
        answer = await ask(_token_request())
        if answer.status == 200:
            self._token = answer.body.strip()
        return bool(self._token)

    async def look(self, ask: Ask, now: float) -> Notice | None:
        """See `Provider.look`."""
        action = await self._get(ask, ACTION)
        if action.status == 200:
            return interruption(action.body, now)
        recommended = await self._get(ask, REBALANCE)
        return rebalance(recommended.body, now) if recommended.status == 200 else None

    async def _get(self, ask: Ask, path: str) -> Answer:
        """The item at `path`; status 404: there is none."""
        for fresh in (False, True):
            if fresh or not self._token:
                self._token = understood(await ask(_token_request()), "a session token").body.strip()
            answer = await ask(Request(path, {"X-aws-ec2-metadata-token": self._token}))
            if answer.status != 401:  # 401: the token has expired
                break
        return answer if answer.status == 404 else understood(answer, path)


def interruption(body: str, now: float) -> Notice:
    """`{"action": "terminate", "time": "2017-09-18T08:22:00Z"}`. Hibernation begins at once, whatever the time says.

    Without a time that can be read, the promised two minutes are taken for it. Raises ValueError for anything else.
    """
    said = _object(body)
    action = said.get("action")
    if action not in ACTIONS:
        raise ValueError(f"the spot interruption's action {action!r} is none of {', '.join(ACTIONS)}")
    at = _time(said.get("time"))
    deadline = now if action == "hibernate" else now + NOTICE_S if at is None else at
    return Notice(f"AWS spot interruption ({action})", deadline)


def rebalance(body: str, now: float) -> Notice:
    """`{"noticeTime": "2020-10-27T08:22:00Z"}`: an interruption is likely, and its notice may come at any moment."""
    if "noticeTime" not in _object(body):
        raise ValueError(f"a rebalance recommendation without noticeTime: {body[:200]!r}")
    return Notice("AWS rebalance recommendation", now + NOTICE_S, certain=False)


def _token_request() -> Request:
    return Request(TOKEN, {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}, "PUT")


def _object(body: str) -> dict[str, object]:
    said = json.loads(body)
    if not isinstance(said, dict):
        raise ValueError(f"no JSON object: {body[:200]!r}")
    return said


def _time(said: object) -> float | None:
    try:
        return datetime.strptime(str(said), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
