"""Easy samples first: every pass holds exactly the rows that are easy enough, wherever one begins to look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.audit.content import Reading
from shoal.data.catalog import read_catalog
from shoal.data.curriculum import Ranked, ranked, share
from shoal.data.order import Order
from shoal.data.training import TrainingData, order_digest
from shoal.errors import ConfigError, DataError
from shoal.job import Curriculum, Data, Source

pytestmark = pytest.mark.unit

LINEAR = Curriculum(start=0.2, until=0.5)


@st.composite
def paced(draw: st.DrawFn) -> Order:
    rows = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8).map(tuple))
    places = np.random.default_rng(draw(st.integers(0, 99))).permutation(sum(rows))
    ranks = tuple(np.split(places, np.cumsum(rows)[:-1]))
    spec = Curriculum(
        start=draw(st.floats(0.01, 1)),
        until=draw(st.floats(0.01, 1)),
        pacing=draw(st.sampled_from(["linear", "root", "step"])),
    )
    pacing = Ranked(spec, ranks, draw(st.integers(1, 400)))
    return Order(group_rows=rows, seed=draw(st.integers(0, 2**40)), window=draw(st.integers(1, 30)), pacing=pacing)


def again(order: Order) -> Order:
    return Order(group_rows=order.group_rows, seed=order.seed, window=order.window, pacing=order.pacing)


@settings(deadline=None)
@given(paced(), st.integers(0, 500))
def test_a_pass_holds_every_row_that_is_easy_enough_once(order: Order, position: int) -> None:
    assert order.pacing is not None
    epoch, start = order.epoch_of(position), position
    while start and order.epoch_of(start - 1) == epoch:
        start -= 1
    limit = order.pacing.limit(start)
    samples = [order.sample(p) for p in range(start, start + limit)]
    assert sorted(samples) == [(g, int(r)) for g in range(len(order.group_rows)) for r in order.pacing.rows(g, limit)]
    assert order.epoch_of(start + limit) == epoch + 1


@settings(deadline=None)
@given(paced(), st.integers(0, 300))
def test_the_rest_is_the_same_wherever_one_goes_on(order: Order, position: int) -> None:
    assert [again(order).sample(p) for p in range(position, position + 20)] == [
        order.sample(p) for p in range(position, position + 20)
    ]


@given(st.sampled_from(["linear", "root", "step"]), st.floats(0, 1), st.floats(0, 1))
def test_the_share_grows_to_everything(pacing: str, early: float, late: float) -> None:
    spec = Curriculum(pacing=pacing, start=0.1, until=0.6)  # type: ignore[arg-type]
    assert share(spec, 0.0) == pytest.approx(0.1)
    assert share(spec, 0.6) == share(spec, 1.0) == pytest.approx(1.0)
    low, high = sorted((early, late))
    assert 0.1 <= share(spec, low) <= share(spec, high) + 1e-12


@pytest.fixture
def data(tmp_path: Path) -> str:
    tokens = np.zeros((40, 64), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (40, 64), dtype=np.uint8)
    for row in range(40):
        tokens[row, : 1 + row] = noise[row, : 1 + row]
    table = pa.table(
        {
            "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens.ravel()), 64),
            "loss": pa.array(range(40, 0, -1)),
            "id": range(40),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    return str(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("spec", "easiest"),
    [
        (Curriculum(difficulty="compressibility"), range(8)),
        (Curriculum(difficulty="length", of="tokens"), range(8)),
        (Curriculum(difficulty="loss"), range(32, 40)),
        (Curriculum(difficulty="loss", hardest_first=True), range(8)),
    ],
)
def test_difficulty_from_a_column_or_computed(data: str, spec: Curriculum, easiest: range) -> None:
    train = TrainingData.of(read_catalog(data, ["tokens", "id"]))
    asked = Data(train=data, curriculum=spec, window=16)
    orders = train.orders(asked, None, seed=1, total=10_000)
    (first,) = Reading(train.catalogs, orders).slices(0, 8, [8])
    assert sorted(first["id"].tolist()) == list(easiest)
    assert ranked(train.catalogs[0], spec, 10, 2).limit(0) == 8


def test_a_missing_column_is_named(data: str) -> None:
    with pytest.raises(DataError, match=r"no column 'hardness'.*tokens, loss, id"):
        ranked(read_catalog(data), Curriculum(difficulty="hardness"), 10, 1)
    with pytest.raises(DataError, match=r"'tokens'.* holds \[64\] numbers per row"):
        ranked(read_catalog(data), Curriculum(difficulty="tokens"), 10, 1)


def test_a_mixture_is_read_again_as_its_arithmetic_says(data: str) -> None:
    catalog = read_catalog(data, ["id"])
    train = TrainingData(("a", "b"), (catalog, catalog))
    asked = Data(sources=(Source(name="a", train="x", weight=3.0), Source(name="b", train="y")), window=8)
    mixture = train.mixture(asked, seed=4, block=8, total=400)
    assert mixture is not None
    orders = train.orders(asked, mixture, seed=4, total=400)
    found = list(Reading(train.catalogs, orders, mixture).slices(16, 80, [8] * 8))
    sources, places = mixture.locate(16, 80)
    starts = np.cumsum([0, *orders[0].group_rows])
    want = [int(starts[g]) + r for g, r in (orders[s].sample(int(p)) for s, p in zip(sources, places, strict=True))]
    assert np.concatenate([f["id"] for f in found]).tolist() == want
    assert [orders[0].sample(i) for i in range(9)] != [orders[1].sample(i) for i in range(9)], "each its own order"


def test_drawing_with_replacement_stays_in_the_window_and_is_even() -> None:
    order = Order(group_rows=(20, 30, 50), seed=3, window=40, replacement=True)
    drawn = [order.sample(p) for p in range(20_000)]
    assert drawn[777:800] == [
        again.sample(p)
        for again in [Order(group_rows=(20, 30, 50), seed=3, window=40, replacement=True)]
        for p in range(777, 800)
    ]
    assert len(set(drawn[:100])) < 90
    counts = np.unique([g * 100 + r for g, r in drawn], return_counts=True)[1]
    assert len(counts) == 100
    assert counts.min() > 120
    assert counts.max() < 290


def test_what_decides_the_order_has_a_digest() -> None:
    plain, mixed = Data(train="x"), Data(sources=(Source(name="a", train="x"), Source(name="b", train="y")))
    assert order_digest(plain, block=8, total=80) == ""
    assert order_digest(mixed, block=8, total=80) == order_digest(mixed, block=8, total=160), "constant weights"
    paced = Data(train="x", curriculum=Curriculum())
    assert order_digest(paced, block=8, total=80) != order_digest(paced, block=8, total=160)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "x", "sources": (Source(name="a", train="y"),)}, "are both set"),
        ({}, "data.train is empty"),
        ({"sources": (Source(name="a", train="x"), Source(name="a", train="y"))}, "two sources of one name"),
        ({"train": "x", "replacement": True, "shuffle": False}, "draws at random"),
    ],
)
def test_contradictions_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Data(**values)


def test_values_that_cannot_be_are_refused() -> None:
    for made, message in (
        (lambda: Source(name="a b", train="x"), "it names metrics"),
        (lambda: Source(name="a", train="x", weight=0.0), "would never be used"),
        (lambda: Source(name="a", train="x", weight=-1.0), "at least 0"),
        (lambda: Curriculum(pacing="fast"), "pacing"),  # type: ignore[arg-type]
        (lambda: Curriculum(start=0.0), "more than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            made()
