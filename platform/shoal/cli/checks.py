"""One line of `shoal doctor`, and how a probe that fails itself becomes one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "slow", "fails"]

Probe = Callable[[], "Iterable[Check]"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was found at one point, and what to do about it.

    `slow`: works, but worse than it could (or only part of it works). `fails`: would fail the default job.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def collect(name: str, probe: Probe) -> list[Check]:
    """The checks of `probe`; if it raises, one that says so."""
    try:
        return list(probe())
    except Exception as error:  # noqa: BLE001 - a doctor must not die of what it looks at; the reason is shown instead
        return [Check(name, "slow", f"could not be looked at: {type(error).__name__}: {error}")]


def ask_child(code: str, *arguments: str, timeout_s: float) -> Any:
    """What Python `code` prints as JSON on its last line, in a process of its own.

    For imports that are noisy, and for calls that may hang or end the process. Raises RuntimeError with the child's
    last words if it fails, or if it takes longer than `timeout_s`.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer within {timeout_s:.0f}s") from None
    lines = child.stdout.strip().splitlines()
    if child.returncode or not lines:
        said = (child.stderr.strip() or child.stdout.strip() or f"exit code {child.returncode}").splitlines()
        raise RuntimeError(said[-1])
    return json.loads(lines[-1])
