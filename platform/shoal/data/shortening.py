"""Cuts the samples of early steps to their beginnings: `data.length_warmup`."""

from __future__ import annotations

import numpy as np

from shoal.errors import DataError
from shoal.job.sampling import LengthWarmup


def length_at(spec: LengthWarmup, whole: int, progress: float) -> int:
    """How many of `whole` entries count at `progress` in [0, 1]."""
    if progress >= spec.until or spec.start >= whole:
        return whole
    grown = spec.start + (whole - spec.start) * progress / spec.until
    return min(whole, max(spec.start, int(grown) // spec.multiple * spec.multiple))


def shorten(spec: LengthWarmup, samples: dict[str, np.ndarray], progress: float) -> dict[str, np.ndarray]:
    """`samples` (column -> [n, length + 1, ...]) cut to the length of `progress` and one entry more, since a language
    model's last token is only a target. Raises DataError for a column that is missing or holds no sequences."""
    out = dict(samples)
    for name in spec.columns:
        column = samples.get(name)
        if column is None or column.ndim < 2:
            has = "is missing" if column is None else "holds one number per sample"
            raise DataError(
                f"column {name!r} {has}, so data.length_warmup cannot shorten it; set LengthWarmup.columns to columns "
                f"of sequences, of which this data has {[n for n, c in samples.items() if c.ndim > 1] or 'none'}"
            )
        out[name] = np.ascontiguousarray(column[:, : length_at(spec, column.shape[1] - 1, progress) + 1])
    return out
