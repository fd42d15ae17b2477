"""Augmentation: a shard's samples come out the same whoever computes them, and each kind does what its paper says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.augment import Samples, apply, augmenter, check
from shoal.data.columns import Column
from shoal.errors import DataError
from shoal.job import Batch, Budget, Crop, CutMix, Data, Erase, Flip, Job, MaskTokens, Mixup
from shoal.job.augment import KINDS, Augmentation
from shoal.tasks import ImageClassifier, LanguageModel

pytestmark = pytest.mark.unit

ALL: tuple[Augmentation, ...] = (
    Flip(horizontal=0.5, vertical=0.3),
    Crop(padding=2, fill=3.0),
    Erase(probability=0.7, fill=None),
    Mixup(alpha=0.4, classes=10, probability=0.8),
    CutMix(alpha=1.0, classes=10),
    MaskTokens(probability=0.3, token=256, random=0.2, vocabulary=200),
)


def some(n: int, dtype: str = "float32", channels: int | None = 2, seed: int = 0) -> Samples:
    """Images 6 x 8 of distinct pixels, labels and tokens."""
    shape = (n, 6, 8) if channels is None else (n, channels, 6, 8)
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, shape) if np.dtype(dtype).kind in "iu" else random.random(shape)
    return {
        "image": pixels.astype(dtype),
        "label": random.integers(0, 10, n),
        "tokens": random.integers(0, 200, (n, 9), dtype=np.uint8),
    }


def do(what: Augmentation | Sequence[Augmentation], samples: Samples, **how: int) -> Samples:
    what = what if isinstance(what, Sequence) else (what,)
    return apply(what, samples, **{"seed": 1, "first": 0, "shard_size": len(samples["label"]), **how})


def same(a: Samples, b: Samples) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_shard_comes_out_the_same_alone_or_with_others(data: st.DataObject) -> None:
    size, shards, start = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 6)), data.draw(st.integers(0, 10**12))
    chain = data.draw(st.lists(st.sampled_from(ALL), min_size=1, max_size=4))
    dtype, channels = data.draw(st.sampled_from(["uint8", "float16", "float32"])), data.draw(st.sampled_from([None, 3]))
    samples, seed = some(size * shards, dtype, channels), data.draw(st.integers(0, 2**63))
    cuts = sorted({0, shards, *data.draw(st.lists(st.integers(0, shards)))})
    first = start * size
    whole = do(chain, samples, seed=seed, first=first, shard_size=size)
    parts = [
        do(
            chain,
            {k: v[a * size : b * size] for k, v in samples.items()},
            seed=seed,
            first=first + a * size,
            shard_size=size,
        )
        for a, b in pairwise(cuts)
    ]
    assert same(whole, {k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    assert all(len(v) == size * shards and v.flags.c_contiguous for v in whole.values())


@pytest.mark.parametrize("what", ALL, ids=lambda a: type(a).__name__)
def test_what_happens_depends_on_seed_place_and_position_and_leaves_what_was_given(what: Augmentation) -> None:
    samples = some(64)
    before = {k: v.copy() for k, v in samples.items()}
    usual = do(what, samples)
    assert same(usual, do(what, samples))
    assert same(samples, before)
    for other in (do(what, samples, seed=2), do(what, samples, first=64)):
        assert not same(other, usual)
    nothing = Flip(horizontal=0.0)
    assert not same(do((nothing, what), samples), usual), "another place in data.augment draws other numbers"


def test_no_shards_mix() -> None:
    samples = some(12)
    marked = {**samples, "image": samples["image"] + 100 * (np.arange(12) // 4)[:, None, None, None].astype("f4")}
    for what in (Mixup(alpha=1.0, classes=10), CutMix(alpha=1.0, classes=10)):
        image = do(what, marked, shard_size=4)["image"]
        assert ((image // 100).astype(int) == (np.arange(12) // 4)[:, None, None, None]).all()


def test_the_arithmetic_is_that_of_earlier_releases() -> None:
    pixels = (np.arange(16 * 2 * 6 * 8) * 37 % 251).astype(np.uint8)
    tokens = (np.arange(16 * 9) * 41 % 199).astype(np.uint8)
    samples = {"image": pixels.reshape(16, 2, 6, 8), "label": np.arange(16) % 10, "tokens": tokens.reshape(16, 9)}
    out = do(ALL, samples, shard_size=8, first=800, seed=7)
    found = {k: hashlib.sha256(v.tobytes()).hexdigest()[:16] for k, v in sorted(out.items()) if k != "tokens"}
    assert found == {"image": "f13e463f255b20bd", "inputs": "310795a7fcfc5132", "label": "691fe8e1fa289254"}


def test_nothing_to_do_is_nothing() -> None:
    samples = some(4)
    assert do((), samples) is samples


def test_every_kind_has_an_action_and_an_example_here() -> None:
    assert {type(a) for a in ALL} == set(KINDS)


@pytest.mark.parametrize("channels", [None, 3])
def test_flips_mirror_as_often_as_they_should(channels: int | None) -> None:
    samples = some(4000, channels=channels)
    given_, found = samples["image"], do(Flip(horizontal=0.25, vertical=0.5), samples)["image"]
    shares = {}
    for horizontal in (False, True):
        for vertical in (False, True):
            axes = ((-1,) if horizontal else ()) + ((-2,) if vertical else ())
            mirrored = np.flip(given_, axes) if axes else given_
            shares[horizontal, vertical] = np.mean([np.array_equal(a, b) for a, b in zip(mirrored, found, strict=True)])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares[True, True] == pytest.approx(0.125, abs=0.03)
    assert shares[True, False] == pytest.approx(0.125, abs=0.03)
    assert shares[False, True] == pytest.approx(0.375, abs=0.03)


@pytest.mark.parametrize("channels", [None, 3])
def test_crops_are_pieces_of_the_padded_image_and_all_of_them_come(channels: int | None) -> None:
    samples = some(600, channels=channels)
    found = do(Crop(padding=2, fill=-1.0), samples)["image"]
    around = [(0, 0)] * (found.ndim - 2) + [(2, 2), (2, 2)]
    padded = np.pad(samples["image"], around, constant_values=-1)
    seen = set()
    for i, image in enumerate(found):
        places = [
            (y, x) for y in range(5) for x in range(5) if np.array_equal(padded[i, ..., y : y + 6, x : x + 8], image)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 25


def test_erasing_fills_one_rectangle_of_the_right_size() -> None:
    samples = {"image": np.full((3000, 3, 20, 30), 5, np.uint8), "label": np.zeros(3000, int)}
    low, high = 0.1, 0.3
    found = do(Erase(probability=0.4, area=(low, high), ratio=(0.5, 2.0), fill=9.0), samples)["image"]
    assert set(np.unique(found)) == {5, 9}
    sizes = []
    for image in found:
        rows, columns = np.flatnonzero((image == 9).any((0, 2))), np.flatnonzero((image == 9).any((0, 1)))
        if rows.size:
            assert (image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 9).all()
            assert (image == 9).sum() == 3 * len(rows) * len(columns)
            sizes.append((len(rows), len(columns), rows[0], columns[0]))
    tall, wide, top, left = np.array(sizes).T
    assert len(sizes) / 3000 == pytest.approx(0.4, abs=0.04)
    share = tall * wide / 600
    # Sides are whole pixels, so that the area is met to within one row and one column.
    assert low - 0.03 < share.min() < low + 0.03
    assert high - 0.03 < share.max() < high + 0.03
    assert share.mean() == pytest.approx((low + high) / 2, abs=0.02)
    assert 0.4 < (tall / wide).min() < 0.6
    assert 1.7 < (tall / wide).max() < 2.5
    assert (top.min(), (top + tall).max(), left.min(), (left + wide).max()) == (0, 20, 0, 30)


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 255), ("int8", 127), ("float32", 1.0)])
def test_noise_fills_the_range_of_pixels(dtype: str, most: float) -> None:
    samples = {"image": np.zeros((400, 10, 10), dtype), "label": np.zeros(400, int)}
    found = do(Erase(probability=1.0, area=(1.0, 1.0), ratio=(1.0, 1.0), fill=None), samples)["image"]
    assert found.dtype == dtype
    assert found.min() == pytest.approx(0, abs=0.001)
    assert found.max() == pytest.approx(most, rel=0.001)
    assert found.mean() == pytest.approx(most / 2, rel=0.02)


@pytest.mark.parametrize(("dtype", "becomes"), [("uint8", "float32"), ("float16", "float16"), ("float64", "float64")])
def test_mixup_is_a_weighted_mean_with_one_other_sample(dtype: str, becomes: str) -> None:
    samples = some(10, dtype)
    samples["label"] = np.arange(10)
    out = do(Mixup(alpha=1.0, classes=10), samples)
    assert (out["image"].dtype, out["label"].dtype) == (becomes, "float32")
    others = []
    for i, (image, shares) in enumerate(zip(out["image"], out["label"], strict=True)):
        other = int(np.argmax(np.where(np.arange(10) == i, -1, shares)))
        assert shares[i] + shares[other] == pytest.approx(1)
        mean = shares[i] * samples["image"][i].astype("f8") + shares[other] * samples["image"][other].astype("f8")
        np.testing.assert_allclose(image, mean, rtol=2e-3 if dtype == "float16" else 1e-5, atol=1e-3)
        others.append(other)
    assert sorted(others) == list(range(10)), "each is the other one of exactly one"
    assert all(other != i for i, other in enumerate(others))


def test_mixup_takes_vectors_and_labels_that_are_mixed_already() -> None:
    samples = {"x": np.eye(4, dtype="f4"), "y": np.arange(4)}
    twice = [Mixup(alpha=1.0, classes=4, column="x", label="y"), Mixup(alpha=1.0, classes=4, column="x", label="y")]
    out = apply(twice, samples, seed=0, first=0, shard_size=4)
    np.testing.assert_allclose(out["x"], out["y"], rtol=1e-6)
    np.testing.assert_allclose(out["y"].sum(1), 1, rtol=1e-6)


def test_samples_that_are_not_mixed_stay_to_the_bit() -> None:
    samples = some(200) | {"label": np.arange(200)}
    samples["image"][0, 0, 0, 0] = np.nan  # may not reach a sample that is not mixed with it
    for kind in (Mixup, CutMix):
        out = do(kind(alpha=1.0, classes=200, probability=0.0), samples)
        assert np.array_equal(out["label"], np.eye(200))
        assert same(out | {"label": samples["label"]}, samples)
    out = do(Mixup(alpha=1.0, classes=200, probability=0.3), samples)
    mixed = out["label"].max(1) < 1
    assert 0.15 < mixed.mean() < 0.45
    assert np.array_equal(out["image"][~mixed], samples["image"][~mixed], equal_nan=True)


def test_cutmix_takes_a_rectangle_of_another_and_its_share_of_the_label() -> None:
    n = 400
    ids = np.arange(n, dtype="f4")
    samples = {"image": np.broadcast_to(ids[:, None, None, None], (n, 3, 6, 8)).copy(), "label": np.arange(n)}
    out = do(CutMix(alpha=1.0, classes=n), samples)
    own = np.array([(image == i).mean() for i, image in enumerate(out["image"])])
    for i, image in enumerate(out["image"]):
        assert out["label"][i, i] == pytest.approx(own[i], abs=1e-6)
        taken = image[0] != i
        rows, columns = np.flatnonzero(taken.any(1)), np.flatnonzero(taken.any(0))
        if rows.size:
            piece = image[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert len(np.unique(piece)) == 1
            assert (image != i).sum() == piece.size
            assert out["label"][i, int(piece.flat[0])] == pytest.approx(1 - own[i], abs=1e-6)
    assert 0.5 < own.mean() < 0.8  # half on average, more because rectangles are cut off at the border
    assert own.min() < 0.35


def test_masked_tokens_are_a_column_of_their_own() -> None:
    tokens = np.random.default_rng(0).integers(0, 200, (500, 40), dtype=np.uint8)
    out = apply([MaskTokens(probability=0.2, token=255)], {"tokens": tokens}, seed=0, first=0, shard_size=500)
    assert np.array_equal(out["tokens"], tokens)
    assert out["inputs"].dtype == np.uint8
    changed = out["inputs"] != tokens
    assert (out["inputs"][changed] == 255).all()
    assert changed.mean() == pytest.approx(0.2, abs=0.01)
    assert 0 < changed.mean(1).std() < 0.1
    half = MaskTokens(probability=0.4, token=300, random=0.5, vocabulary=200, column="tokens", into="seen")
    seen = apply([half], {"tokens": tokens}, seed=0, first=0, shard_size=500)["seen"]
    assert seen.dtype == np.uint16
    assert (seen == 300).mean() == pytest.approx(0.2, abs=0.01)
    drawn = seen[(seen != tokens) & (seen != 300)]
    assert len(drawn) / tokens.size == pytest.approx(0.2 * 199 / 200, abs=0.01)
    assert (drawn.min(), drawn.max()) == (0, 199)


IMAGE = Column("image", "float32", (1, 8, 8))
LABEL = Column("label", "int64", ())


@pytest.mark.parametrize(
    ("what", "columns", "message"),
    [
        (Flip(), [Column("picture", "uint8", (8, 8))], r"Flip works on column 'image', and training reads picture"),
        (Flip(), [Column("image", "uint8", (64,))], r"Flip needs images .* in column 'image', and finds \[64\]"),
        (Crop(), [Column("image", "uint8", ())], r"Crop needs images .* finds \[\]"),
        (Erase(), [Column("image", "uint8", (1, 2, 3, 4))], r"Erase needs images .* finds \[1, 2, 3, 4\]"),
        (Crop(fill=0.5), [Column("image", "uint8", (8, 8))], r"Crop\.fill=0\.5 is no pixel .* uint8.* from 0 to 255"),
        (Erase(fill=-1), [Column("image", "uint8", (8, 8))], r"Erase\.fill=-1\.0 is no pixel"),
        (Mixup(alpha=1, classes=10), [IMAGE], r"Mixup works on column 'label', and training reads image"),
        (
            CutMix(alpha=1, classes=10, label="soft"),
            [IMAGE, Column("soft", "float32", (7,))],
            r"CutMix needs whole numbers, or shares of 10 classes, in column 'soft', and finds float32 \[7\]",
        ),
        (
            MaskTokens(probability=0.1, token=0),
            [Column("tokens", "float32", (9,))],
            r"MaskTokens needs whole numbers \[length\] in column 'tokens', and finds float32 \[9\]",
        ),
    ],
)
def test_what_does_not_suit_the_data_is_named_before_anything_starts(
    what: Augmentation, columns: list[Column], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        check(job(ImageClassifier(), what), columns)


def test_what_suits_the_data_passes() -> None:
    check(job(ImageClassifier(), *ALL[:5]), [IMAGE, LABEL])
    check(job(LanguageModel(), MaskTokens(probability=0.1, token=0)), [Column("tokens", "uint8", (None,))])
    check(job(ImageClassifier()), [])


def test_a_label_beyond_the_classes_is_named() -> None:
    samples = some(4)
    for wrong in (10, -1):
        samples["label"][2] = wrong
        with pytest.raises(DataError, match=rf"column 'label' holds the label {wrong}, and Mixup has classes=10"):
            do(Mixup(alpha=1, classes=10), samples)


def test_the_job_says_seed_and_shards() -> None:
    made = job(ImageClassifier(), *ALL[:5], seed=9, batch=Batch(size=12, virtual_shards=3))
    samples = some(8)
    assert same(augmenter(made)(samples, 24, 4, 0.5), do(ALL[:5], samples, seed=9, first=24, shard_size=4))


def job(task: Any, *augment: Augmentation, **parts: Any) -> Job:
    return Job(task=task, data=Data(train="x", augment=augment), budget=Budget(steps=1), **parts)
