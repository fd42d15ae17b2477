"""Changes of the membership in words: what happened to whom, and what it cost. Pure; entries of kind `change`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PARTS = ("detect", "regroup", "state", "resume")
"""What a change's time goes into: until it was known; until the new group stood; moving the state; until the first
commit of the new view."""

_DONE = {"join": "joined", "leave": "left", "loss": "was lost", "hang": "hung and was cut out"}
_MANY = {"loss": "were lost", "hang": "hung and were cut out"}


def describe(entry: Mapping[str, Any]) -> str:
    """`w3 joined: 4 workers from step 41 · regroup 0.20s, state 0.15s · 0.44s without a step`."""
    return " · ".join(part for part in (_event(entry), costs(entry), _lost_time(entry)) if part)


def costs(entry: Mapping[str, Any]) -> str:
    """`detect 0.12s, regroup 0.20s, state 0.15s, resume 0.09s`: what is known of it."""
    known = ((part, entry.get(f"{part}_s")) for part in PARTS)
    return ", ".join(f"{part} {value:.2f}s" for part, value in known if value)


def _event(entry: Mapping[str, Any]) -> str:
    members, what = [str(m) for m in entry.get("members", ())], str(entry["what"])
    who = ", ".join(members) or "a worker"
    done = (_MANY if len(members) > 1 else {}).get(what) or _DONE.get(what, what)
    count = entry.get("workers")
    size = f"{count} worker{'' if count == 1 else 's'}" if count else ""
    since = f"from step {entry['step']}" if entry.get("step") else ""
    after = " ".join(part for part in (size, since) if part)
    return f"{who} {done}" + (f": {after}" if after else "")


def _lost_time(entry: Mapping[str, Any]) -> str:
    idle, again = entry.get("idle_s"), int(entry.get("steps_redone") or 0)
    parts = [
        f"{idle:.2f}s without a step" if idle is not None else "",
        f"{again} step{'' if again == 1 else 's'} computed again" if again else "",
    ]
    return ", ".join(part for part in parts if part)
