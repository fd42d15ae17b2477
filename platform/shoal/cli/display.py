"""What a run shows: live on a terminal, lines elsewhere, JSON for machines. Passive; no display changes the run."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from shoal.cli import text
from shoal.coordinator.status import Outcome, RunStatus

Clock = Callable[[], float]

LOUD = ("loss", "hang", "warning", "stopping")
"""Kinds of events that are shown even by --quiet."""


class PlainDisplay:
    """A line every `every_s` seconds or tenth of the budget, whichever comes first; every event at once.

    `quiet`: only warnings and the result. Warnings and errors are written like everything else to `stream`.
    """

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, every_s: float = 2.0, clock: Clock = time.monotonic
    ) -> None:
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._every_s = every_s
        self._clock = clock
        self._begun = self._said_at = clock()
        self._said = RunStatus(phase="")

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def started(self, info: Mapping[str, Any]) -> None:
        if not self._quiet:
            for line in introduction(info):
                self._write(line)

    def status(self, status: RunStatus) -> None:
        if self._quiet or not self._due(status):
            return
        self._said, self._said_at = status, self._clock()
        begun = status.step > 0 or status.loss is not None
        if status.message or not begun:
            waits = f": {status.message}" if status.message else ""
            self._write(f"{status.phase}{waits}{f' · {text.steps(status)}' if begun else ''}")
            return
        eta = f" · {text.duration(status.eta_s)} left" if status.eta_s is not None and status.eta_s >= 1 else ""
        phase = "" if status.phase == "training" else f"{status.phase} · "
        self._write(f"{phase}{text.steps(status)} · {text.numbers(status)}{eta}")

    def event(self, kind: str, text: str) -> None:
        if not self._quiet or kind in LOUD:
            self._write(f"{kind}: {text}")

    def finished(self, outcome: Outcome) -> None:
        for line in text.closing(outcome, self._clock() - self._begun):
            self._write(line)
        if outcome.error:
            self._write(f"{'error' if outcome.status == 'failed' else 'note'}: {outcome.error}")

    def _due(self, status: RunStatus) -> bool:
        before = self._said
        if status.phase != before.phase or status.message != before.message:
            return True
        if status.step == before.step:
            return False
        tenth = (status.total_steps or 0) / 10
        crossed = tenth > 0 and status.step // tenth > before.step // tenth
        return crossed or self._clock() - self._said_at >= self._every_s

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class JsonDisplay:
    """One JSON object per line: `{"type": "started" | "status" | "event" | "finished", ...}`.

    Fields are those of `RunStatus` and `Outcome`. A status is written when something in it has changed. Numbers that
    JSON has not (nan, infinity) are written as null.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._last: dict[str, Any] = {}

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def started(self, info: Mapping[str, Any]) -> None:
        self._write("started", info)

    def status(self, status: RunStatus) -> None:
        fields = _fields(status)
        if fields != self._last:
            self._last = fields
            self._write("status", fields)

    def event(self, kind: str, text: str) -> None:
        self._write("event", {"kind": kind, "text": text})

    def finished(self, outcome: Outcome) -> None:
        self._write("finished", _fields(outcome))

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        line = json.dumps({"type": kind, "time": round(time.time(), 3), **_plain(values)}, default=str, allow_nan=False)
        self._stream.write(line + "\n")
        self._stream.flush()


def make_display(*, stream: TextIO | None = None, as_json: bool = False, quiet: bool = False) -> Any:
    """The display that suits `stream` (default: stdout) and the options; a context manager that ends it cleanly."""
    stream = stream or sys.stdout
    if as_json:
        return JsonDisplay(stream)
    if not quiet and stream.isatty():
        from shoal.cli.live import LiveDisplay

        return LiveDisplay(stream)
    return PlainDisplay(stream, quiet=quiet)


def introduction(info: Mapping[str, Any]) -> list[str]:
    """Lines that introduce a run: what, on what, where."""
    said = {
        "run": info.get("folder") or info.get("run_id"),
        "data": _data(info),
        "plan": _plan(info),
        "record": info.get("record"),
    }
    return [f"  {name:<7} {value}" for name, value in said.items() if value]


def _data(info: Mapping[str, Any]) -> str:
    counts = [
        f"{text.amount(info[key])} {word}"
        for key, word in (("samples", "samples"), ("validation_samples", "held out"), ("left_out", "left out as bad"))
        if info.get(key)
    ]
    shown = f" ({', '.join(counts)})" if counts else ""
    return f"{info.get('data', '')}{shown}".strip()


def _plan(info: Mapping[str, Any]) -> str:
    parts = [
        f"{info['total_steps']} steps" if info.get("total_steps") else "",
        f"from step {info['from_step']}" if info.get("from_step") else "",
        f"{info['workers']} workers" if info.get("workers") else "",
        str(info.get("engine") or ""),
        f"{info['cluster']} cluster" if info.get("cluster") else "",
    ]
    return ", ".join(p for p in parts if p)


def _fields(value: Any) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies what it does not know, and mappings need not be dictionaries.
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
