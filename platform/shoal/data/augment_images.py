"""Images in batches: where they are found, pieces and rectangles of them, what a pixel may hold. Pure NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from shoal.errors import DataError
from shoal.job.augment import Augmentation


def column(augmentation: Augmentation, samples: dict[str, np.ndarray], name: str | None = None) -> np.ndarray:
    """Column `name` [n, ...]; without a name, the augmentation's own. DataError if there is none."""
    name = name or augmentation.column
    if name not in samples:
        raise DataError(
            f"{type(augmentation).__name__} works on column {name!r}, and training reads {', '.join(sorted(samples))}; "
            f"name the right one in data.augment, or in the task's `columns`"
        )
    return samples[name]


def take(augmentation: Augmentation, samples: dict[str, np.ndarray]) -> np.ndarray:
    """The augmentation's column, which must hold images: [n, height, width] or [n, channels, height, width]."""
    images = column(augmentation, samples)
    if images.ndim not in (3, 4):
        raise DataError(
            f"{type(augmentation).__name__} needs images [channels, height, width] or [height, width] in column "
            f"{augmentation.column!r}, and finds {list(images.shape[1:])}; write the data in that shape"
        )
    return images


def crop(images: np.ndarray, padding: int, fill: np.generic, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Of each image with `padding` pixels of `fill` around it, the piece of the old size at int [n] (top, left)."""
    height, width = images.shape[-2:]
    around = [(0, 0)] * (images.ndim - 2) + [(padding, padding)] * 2
    padded, out = np.pad(images, around, constant_values=fill), np.empty_like(images)
    for i, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):  # slices are faster than indices
        out[i] = padded[i, ..., y : y + height, x : x + width]
    return out


def rectangles(chosen: np.ndarray, *bounds: np.ndarray) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """(i, the index of its rectangle in images[i]) for each i where `chosen` (bool [n]) is true: rows [top, bottom) of
    the columns [left, right). `bounds` are these four, int [n] each."""
    for i in np.flatnonzero(chosen).tolist():
        top, bottom, left, right = (int(bound[i]) for bound in bounds)
        yield i, (..., slice(top, bottom), slice(left, right))


def as_pixel(augmentation: Any, fill: float, dtype: np.dtype) -> np.generic:
    """`fill` as a number of `dtype`. DataError if it cannot be one."""
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    if limits is not None and not (limits.min <= fill <= limits.max and fill == int(fill)):
        raise DataError(
            f"{type(augmentation).__name__}.fill={fill} is no pixel of column {augmentation.column!r}, which holds "
            f"{dtype}: whole numbers from {limits.min} to {limits.max}; choose one of them"
        )
    return dtype.type(fill)


def noise(uniform: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Random pixels of `uniform` (from 0 to 1): as they are, or whole numbers up to 255 where images hold such."""
    if dtype.kind == "f":
        return uniform.astype(dtype)
    most = 1 if dtype.kind == "b" else min(255, np.iinfo(dtype).max)
    return np.floor(uniform * (most + 1)).astype(dtype)
