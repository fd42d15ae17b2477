"""Compares a stretch of a run that was computed again with what was recorded of it. Pure."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shoal.tracking.ledger import Entry, effective

COMPARED = ("loss", "lr", "grad_norm")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first value that is not what was recorded."""

    step: int
    what: str
    recorded: float | str | None
    again: float | str | None

    @property
    def text(self) -> str:
        """`step 41: loss was 1.25, now 1.2500001 (relative difference 8e-08)`."""
        was, now = self.recorded, self.again
        said = f"step {self.step}: {self.what} was {_exact(was)}, now {_exact(now)}"
        if isinstance(was, float) and isinstance(now, float) and math.isfinite(was) and math.isfinite(now) and was:
            said += f" (relative difference {abs(now - was) / abs(was):.2g})"
        return said


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the comparison of a stretch has shown."""

    equal: int
    """Steps from the first on that agree."""
    partial: int
    """Steps among them of which not all is on the record, because members died before they told: left out."""
    difference: Difference | None


def commits_of(entries: Iterable[Entry], first: int, last: int) -> dict[int, Entry]:
    """step -> its commit, for the steps first..last that count."""
    found = (e for e in entries if e["kind"] == "resume" or (e["kind"] == "commit" and first <= e["step"] <= last))
    return {e["step"]: e for e in effective(found) if e["kind"] == "commit"}


def compare(recorded: Mapping[int, Entry], again: Mapping[int, Entry], tolerance: float | None = None) -> Comparison:
    """Compare the steps of `recorded` in order, up to the first that differs.

    Floats must have the same bits; with a `tolerance`, a relative difference of at most that. A step that was not
    computed again differs.
    """
    equal = partial = 0
    for step in sorted(recorded):
        was, now = recorded[step], again.get(step)
        if now is None:
            return Comparison(equal, partial, Difference(step, "the step", "committed", "not computed"))
        names = _known(was)
        for name in names:
            if not _same(was.get(name), now.get(name), tolerance):
                return Comparison(equal, partial, Difference(step, name, was.get(name), now.get(name)))
        samples = was.get("samples_digest"), now.get("samples_digest")
        if all(samples) and samples[0] != samples[1]:
            return Comparison(equal, partial, Difference(step, "digest of the samples", *samples))
        equal, partial = equal + 1, partial + (len(names) < len(COMPARED))
    return Comparison(equal, partial, None)


def _known(was: Entry) -> tuple[str, ...]:
    """What can be compared: the loss on the record is whole only if all virtual shards are `covered`."""
    covered = was.get("covered")
    return COMPARED if covered is None else COMPARED[1:] if covered else ()


def _same(was: Any, now: Any, tolerance: float | None) -> bool:
    if was is None or now is None:
        return was is now
    was, now = float(was), float(now)
    if struct.pack("<d", was) == struct.pack("<d", now) or (math.isnan(was) and math.isnan(now)):
        return True
    return tolerance is not None and math.isclose(was, now, rel_tol=tolerance)


def _exact(value: float | str | None) -> str:
    return repr(value) if isinstance(value, float) else str(value)
