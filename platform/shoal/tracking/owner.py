"""Who records a run, and whether that process still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

_CLOCK_SLACK_S = 2.0
"""A process's start time is computed from the boot time, which moves when the clock is set."""


def owner() -> dict[str, Any]:
    """This process, as `run.json` keeps it under `owner`: pid, host, start time (Unix seconds)."""
    import psutil

    return {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}


def is_alive(who: Mapping[str, Any] | None) -> bool:
    """Whether the process `who` still runs. True if that cannot be known from here: another host's, or none noted."""
    if not who or who.get("host") != socket.gethostname():
        return True
    import psutil

    try:
        process = psutil.Process(int(who["pid"]))
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - who["started"]) < _CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
