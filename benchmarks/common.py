"""What the benchmarks share: paired arms in one run, medians with spread, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


def interleave(arms: Mapping[str, Callable[[], T]], n: int, say: Callable[[str, T], None]) -> dict[str, list[T]]:
    """Run every arm `n` times, in turn, the order reversed each round, so that drift of the machine hits all alike."""
    results: dict[str, list[T]] = {name: [] for name in arms}
    for i in range(n):
        for name in list(arms) if i % 2 == 0 else list(reversed(arms)):
            result = arms[name]()
            results[name].append(result)
            say(name, result)
    return results


def spread(values: Sequence[float], digits: int = 3) -> str:
    """`median (min-max, n)`."""
    return (
        f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f}, n={len(values)})"
    )


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Ratio pair by pair."""
    return [x / y for x, y in zip(a, b, strict=True)]


def machine() -> str:
    """One line: what this was measured on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "deepspeed"))
    return (
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores {platform.machine()}, "
        f"Python {platform.python_version()}, "
        f"{versions}, commit {commit.stdout.strip() or 'unknown'}, load {os.getloadavg()[0]:.1f}"
    )


def write_result(name: str, text: str) -> None:
    """Keep a table under benchmarks/results/, and print it."""
    path = RESULTS / f"{name}.md"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(text)
    print(text)
    print(f"written to {path}")
