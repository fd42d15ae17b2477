"""Whether a newcomer fits the run: same code, same model and, where bits count, same arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Mapping

SHOWN = 4
"""Differences that a refusal names; one is enough to act upon."""


def refusal(newcomer: Mapping[str, str], run: Mapping[str, str]) -> str | None:
    """Why a worker with this identity cannot take part in a run whose workers have the identity `run`; None: it can.

    An identity is a table of names (`torch`, `model`, `module digits`) and versions or digests. Only names that both
    have are compared: which modules are loaded may depend on what a process has done so far.
    """
    other = [name for name in sorted(newcomer.keys() & run.keys()) if newcomer[name] != run[name]]
    if not other:
        return None
    said = ", ".join(f"{name} is {newcomer[name]}, not {run[name]}" for name in other[:SHOWN])
    return said + (f", and {len(other) - SHOWN} more" if len(other) > SHOWN else "")
