"""Log lines of Shoal's processes: who says them, in which run, view and step; as text or as JSON, one object per line.

Ray keeps what its workers write to stderr in a file per process, below the session's `logs` folder on each node; from
there log shippers take it.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

Style = Literal["text", "json"]
FIELDS = ("run", "worker", "view", "step")
"""What every line says as far as it is known."""

_CONTEXT: dict[str, Any] = {}
"""Of this process: it serves one run at a time."""


def note(**fields: Any) -> None:
    """From now on every line of this process says these; None: no longer."""
    for name, value in fields.items():
        if value is None:
            _CONTEXT.pop(name, None)
        else:
            _CONTEXT[name] = value


def extra(**fields: Any) -> dict[str, Any]:
    """What one line says besides: `log.info(text, extra=logs.extra(event="join"))`."""
    return {"shoal": fields}


def configure(style: Style, stream: TextIO | None = None, **fields: Any) -> None:
    """Write the lines of Shoal's loggers to `stream` (default: stderr), in that style; `fields` as for `note`.

    What was noted before is forgotten. Other libraries' loggers are left alone.
    """
    _CONTEXT.clear()
    note(**fields)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if style == "json" else Text())
    logger = logging.getLogger("shoal")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


class JsonLines(logging.Formatter):
    """`{"time": "2026-11-30T12:00:00.123Z", "level": "warning", "run": ..., "view": 3, "step": 41, "message": ...}`."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            **_fields(record),
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            said["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(said, default=str)


class Text(logging.Formatter):
    """`2026-11-30T12:00:00.123Z WARNING run=... view=3 step=41 message`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname} {fields + ' ' if fields else ''}{record.getMessage()}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, timezone.utc)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    own: Mapping[str, Any] = getattr(record, "shoal", {})
    known = {**_CONTEXT, **own}
    first = {name: known.pop(name) for name in FIELDS if name in known}
    return {**first, **known}
