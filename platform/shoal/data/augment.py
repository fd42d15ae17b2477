"""Does to the training samples what `data.augment` says.

A function of the job and of the samples' positions: all random numbers are keyed by (seed, place in `data.augment`,
position), and samples are mixed only inside a virtual shard. So a shard's samples come out as the same bytes whoever
computes them, alone or with others, once or again. The ledger's digests are those of the samples before; evaluation
never comes here. Pure NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shoal.data import augment_images as images
from shoal.data.columns import Column
from shoal.data.draws import Draws
from shoal.data.shortening import shorten
from shoal.errors import DataError
from shoal.job import Job
from shoal.job.augment import Augmentation, Crop, CutMix, Erase, Flip, MaskTokens, Mixup

Samples = dict[str, np.ndarray]


def apply(
    augmentations: Sequence[Augmentation], samples: Samples, *, seed: int, first: int, shard_size: int
) -> Samples:
    """`samples` (column -> [n, ...]) as the model sees them; the given arrays stay as they are.

    `first` is the position of the first one in the endless stream. They are whole virtual shards: n is a multiple of
    `shard_size`. Raises DataError for a column that is missing or does not suit, by its name.
    """
    if not augmentations:
        return samples
    rows = len(next(iter(samples.values())))
    assert rows % shard_size == 0, f"samples {first}..{first + rows - 1} are no whole shards of {shard_size}"
    for place, augmentation in enumerate(augmentations):
        draws = Draws(seed, place, first, rows, shard_size)
        samples = {**samples, **_ACTIONS[type(augmentation)](augmentation, samples, draws)}
    return {name: np.ascontiguousarray(column) for name, column in samples.items()}


def augmenter(job: Job) -> Callable[[Samples, int, int, float], Samples]:
    """(samples, position of the first one, samples in a virtual shard, progress before their step) -> what the model
    sees of them: the one way from the feed to an engine."""
    warmup = job.data.length_warmup

    def augment(samples: Samples, first: int, shard_size: int, progress: float) -> Samples:
        if warmup is not None:  # first, so that masked inputs are as long as their targets
            samples = shorten(warmup, samples, progress)
        return apply(job.data.augment, samples, seed=job.seed, first=first, shard_size=shard_size)

    return augment


def check(job: Job, columns: Sequence[Column]) -> None:
    """Raise DataError if what `job` does to samples does not suit the data's columns. Before anything starts: tried on
    two samples of zeros; a length that only the data knows is two."""
    zeros = {c.name: np.zeros((2, *(n or 2 for n in c.shape)), dtype=c.dtype) for c in columns}
    if job.data.length_warmup is not None:
        zeros = shorten(job.data.length_warmup, zeros, 0.0)
    apply(job.data.augment, zeros, seed=job.seed, first=0, shard_size=2)


def _flip(flip: Flip, samples: Samples, draws: Draws) -> Samples:
    found = images.take(flip, samples).copy()
    for number, (probability, axis) in enumerate(((flip.horizontal, -1), (flip.vertical, -2))):
        chosen = np.flatnonzero(draws.uniform(number) < probability)
        found[chosen] = np.flip(found[chosen], axis)
    return {flip.column: found}


def _crop(crop: Crop, samples: Samples, draws: Draws) -> Samples:
    found = images.take(crop, samples)
    places = 2 * crop.padding + 1
    fill = images.as_pixel(crop, crop.fill, found.dtype)
    return {crop.column: images.crop(found, crop.padding, fill, draws.below(0, places), draws.below(1, places))}


def _erase(erase: Erase, samples: Samples, draws: Draws) -> Samples:
    found = images.take(erase, samples)
    chosen = draws.uniform(0) < erase.probability
    low, high = erase.area
    share = low + (high - low) * draws.uniform(1)
    ratio = erase.ratio[0] * (erase.ratio[1] / erase.ratio[0]) ** draws.uniform(2)
    height, width = found.shape[-2:]
    # Where the paper draws again because a rectangle does not fit, the side that is too long becomes the image's.
    tall, wide = (
        np.clip(np.round(np.sqrt(share * height * width * r)), 1, most).astype(np.int64)
        for r, most in ((ratio, height), (1 / ratio, width))
    )
    top, left = draws.below(3, height - tall + 1), draws.below(4, width - wide + 1)
    fill = None if erase.fill is None else images.as_pixel(erase, erase.fill, found.dtype)
    out = found.copy()
    for i, box in images.rectangles(chosen, top, top + tall, left, left + wide):
        size = out[i][box].shape
        out[i][box] = images.noise(draws.uniforms(5, size, [i])[0], found.dtype) if fill is None else fill
    return {erase.column: out}


def _mixup(mixup: Mixup, samples: Samples, draws: Draws) -> Samples:
    # A weight of its own for each sample, not one for all: more variety from the few samples of a virtual shard.
    own = np.where(draws.uniform(2) < mixup.probability, draws.beta(0, mixup.alpha), 1.0)
    partners = draws.partners()
    found = images.column(mixup, samples)
    labels = _soft_labels(mixup, samples)
    return {
        mixup.column: _blend(found, partners, own, found.dtype if found.dtype.kind == "f" else np.dtype(np.float32)),
        mixup.label: _blend(labels, partners, own, labels.dtype),
    }


def _cutmix(cutmix: CutMix, samples: Samples, draws: Draws) -> Samples:
    found = images.take(cutmix, samples)
    height, width = found.shape[-2:]
    side = np.sqrt(np.where(draws.uniform(2) < cutmix.probability, 1 - draws.beta(0, cutmix.alpha), 0.0))
    partners = draws.partners()
    # As in the paper the rectangle's middle may lie anywhere, and what reaches beyond the image is cut off.
    (top, bottom), (left, right) = (
        _span(draws.below(number, n), np.floor(side * n).astype(np.int64), n) for number, n in ((3, height), (4, width))
    )
    own = 1 - (bottom - top) * (right - left) / (height * width)
    out = found.copy()
    for i, box in images.rectangles(own < 1, top, bottom, left, right):
        out[i][box] = found[partners[i]][box]
    labels = _soft_labels(cutmix, samples)
    return {cutmix.column: out, cutmix.label: _blend(labels, partners, own, labels.dtype)}


def _mask_tokens(mask: MaskTokens, samples: Samples, draws: Draws) -> Samples:
    tokens = images.column(mask, samples)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise DataError(
            f"MaskTokens needs whole numbers [length] in column {mask.column!r}, and finds {tokens.dtype} "
            f"{list(tokens.shape[1:])}; name the column of the tokens in MaskTokens.column"
        )
    most = max(mask.token, (mask.vocabulary or 1) - 1)
    hidden = tokens.astype(np.promote_types(tokens.dtype, np.min_scalar_type(most)))  # 256 does not fit among bytes
    shape = tokens.shape[1:]
    chosen = draws.uniforms(0, shape) < mask.probability
    instead = np.full_like(hidden, mask.token)
    if mask.random and mask.vocabulary:
        drawn = np.floor(draws.uniforms(2, shape) * mask.vocabulary).astype(hidden.dtype)
        instead = np.where(draws.uniforms(1, shape) < mask.random, drawn, instead)
    return {mask.into: np.where(chosen, instead, hidden)}


def _span(middle: np.ndarray, length: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """[start, stop) of `length` around `middle`, cut off at 0 and `most`."""
    start = middle - length // 2
    return np.clip(start, 0, most), np.clip(start + length, 0, most)


def _blend(values: np.ndarray, partners: np.ndarray, own: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """own * values + (1 - own) * values[partners] as `dtype`; rows with own = 1 stay as they are, to the bit."""
    out = values.astype(dtype)
    rows = np.flatnonzero(own < 1)
    weight = own[rows].reshape(-1, *[1] * (values.ndim - 1)).astype(np.promote_types(dtype, np.float32))
    out[rows] = weight * values[rows] + (1 - weight) * values[partners[rows]]
    return out


def _soft_labels(pairs: Mixup | CutMix, samples: Samples) -> np.ndarray:
    """float32 [n, classes]: the labels as shares of the classes; those that are it already stay."""
    name, labels = type(pairs).__name__, images.column(pairs, samples, pairs.label)
    if labels.ndim == 2 and labels.shape[1] == pairs.classes and labels.dtype.kind == "f":
        return labels
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{name} needs whole numbers, or shares of {pairs.classes} classes, in column {pairs.label!r}, and finds "
            f"{labels.dtype} {list(labels.shape[1:])}; name the column of the labels in {name}.label, or the number of "
            f"classes in {name}.classes"
        )
    wrong = labels[(labels < 0) | (labels >= pairs.classes)]
    if wrong.size:
        raise DataError(
            f"column {pairs.label!r} holds the label {wrong[0]}, and {name} has classes={pairs.classes}; set it to the "
            f"data's number of classes"
        )
    return np.eye(pairs.classes, dtype=np.float32)[labels]


_ACTIONS: dict[type, Callable[[Any, Samples, Draws], Samples]] = {
    Flip: _flip,
    Crop: _crop,
    Erase: _erase,
    Mixup: _mixup,
    CutMix: _cutmix,
    MaskTokens: _mask_tokens,
}
