"""The order of samples: arithmetic that must never change, lose or repeat."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data.order import ORDER_VERSION, Cursor, Order, derive, permutation
from shoal.errors import DataError

pytestmark = pytest.mark.unit

orders = st.builds(
    Order,
    group_rows=st.lists(st.integers(1, 40), min_size=1, max_size=12).map(tuple),
    seed=st.integers(-(2**70), 2**70),
    shuffle=st.booleans(),
    window=st.integers(1, 90),
)


def walk(order: Order, start: int, stop: int) -> list[tuple[int, int]]:
    """Samples at [start, stop), by whole windows as the pipeline does it."""
    found: list[tuple[int, int]] = []
    for window in order.windows(start, stop):
        rows = [(g, row) for g in window.groups for row in range(order.group_rows[g])]
        assert len(rows) == window.samples
        placed = rows if (p := window.permutation()) is None else [rows[i] for i in p]
        found += placed[max(0, start - window.start) : stop - window.start]
    return found


@given(orders, st.integers(0, 5))
def test_every_epoch_holds_every_sample_once(order: Order, epoch: int) -> None:
    n = order.samples
    samples = walk(order, epoch * n, (epoch + 1) * n)
    assert sorted(samples) == [(g, r) for g, rows in enumerate(order.group_rows) for r in range(rows)]


@given(orders, st.data())
def test_the_tail_after_any_position_is_the_same_for_a_new_order(order: Order, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 3 * order.samples))
    stop = position + order.samples + 7
    again = Order(group_rows=order.group_rows, seed=order.seed, shuffle=order.shuffle, window=order.window)
    assert walk(again, position, stop) == walk(order, 0, stop)[position:]
    probe = data.draw(st.integers(position, stop - 1))
    assert again.sample(probe) == walk(order, probe, probe + 1)[0]


@given(orders)
def test_windows_reach_their_size_except_at_the_end_of_an_epoch(order: Order) -> None:
    n = order.samples
    for window in order.windows(0, 2 * n):
        assert window.start // n == (window.stop - 1) // n == window.epoch
        assert window.samples >= min(order.window, n) or window.stop % n == 0
        assert order.window_at(window.start) == order.window_at(window.stop - 1) == window


@given(orders, orders.map(lambda o: o.seed), st.integers(0, 2**40))
def test_an_order_does_not_remember_what_was_asked_before(order: Order, seed: int, far: int) -> None:
    before = order.sample(3)
    order.sample(far)
    Order(group_rows=order.group_rows, seed=seed, window=order.window).sample(far)
    assert order.sample(3) == before
    assert pickle.loads(pickle.dumps(order)).sample(far) == order.sample(far)


@settings(max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 400))
def test_permutations_are_permutations(key: int, n: int) -> None:
    assert sorted(permutation(key, n).tolist()) == list(range(n))


def test_seeds_epochs_and_windows_are_shuffled_differently() -> None:
    def epoch(seed: int, e: int) -> tuple:
        return tuple(walk(Order(group_rows=(50,) * 8, seed=seed, window=100), e * 400, (e + 1) * 400))

    seen = {epoch(seed, e) for seed in (0, 1, -1, 2**40) for e in range(4)}
    assert len(seen) == 16
    windows = list(Order(group_rows=(50,) * 8, seed=0, window=50).windows(0, 400))
    assert len({tuple(w.permutation().tolist()) for w in windows}) == 8  # type: ignore[union-attr]


def test_without_shuffling_samples_come_in_file_order() -> None:
    order = Order(group_rows=(3, 1, 2), seed=9, shuffle=False, window=2)
    assert walk(order, 0, 8) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (0, 0), (0, 1)]


def test_a_permutation_has_no_visible_bias() -> None:
    """Mean position of each item over many keys: within five standard errors of the middle."""
    n, keys = 64, 4000
    where = np.zeros(n)
    for key in range(keys):
        where[permutation(derive(key), n)] += np.arange(n)
    error = np.sqrt((n**2 - 1) / 12 / keys)
    assert np.abs(where / keys - (n - 1) / 2).max() < 5 * error


def test_the_arithmetic_is_pinned() -> None:
    """If this fails, data orders of old runs cannot be continued: raise ORDER_VERSION, and think twice."""
    assert ORDER_VERSION == 1
    assert derive(1, 2, 3) == 0x6AE515C1C0AC7E37
    assert permutation(42, 10).tolist() == [4, 1, 6, 2, 8, 3, 9, 0, 7, 5]
    # The published first outputs of SplitMix64 from state 1234567 are 6457827717110365317, 3203168211198807973,
    # 9817491932198370423, 4593380528125082431 and 16408922859458223821: their ranks are what this must give.
    assert permutation(1234567, 5).tolist() == [1, 3, 0, 2, 4]
    order = Order(group_rows=(7, 11, 5, 13, 3), seed=1234, window=12)
    assert [order.sample(p) for p in (0, 1, 17, 38, 39, 1000)] == [(3, 1), (0, 3), (0, 1), (1, 8), (3, 3), (1, 10)]
    said = json.dumps(walk(order, 0, 5 * order.samples)).encode()
    assert hashlib.sha256(said).hexdigest()[:16] == "504a7e9631eea469"


def test_memory_grows_with_row_groups_only() -> None:
    order = Order(group_rows=(1_000_000,) * 1000, seed=0, window=2_000_000)
    assert order.samples == 10**9
    window = order.window_at(123_456_789_012_345)
    assert window.samples == 2_000_000
    assert window.epoch == 123_456


@pytest.mark.parametrize("rows", [(), (3, 0)])
def test_groups_without_rows_are_refused(rows: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="at least one row group"):
        Order(group_rows=rows, seed=0)


def test_a_cursor_survives_json_and_refuses_other_data() -> None:
    data = SimpleNamespace(samples=10, digest="a" * 64)
    cursor = Cursor(position=23, seed=7, samples=10, digest="a" * 64, shuffle=True, window=5)
    back = Cursor.from_json(json.loads(json.dumps(cursor.to_json())))
    assert back == cursor
    back.check(data, cursor)
    for other in (SimpleNamespace(samples=11, digest="a" * 64), SimpleNamespace(samples=10, digest="b" * 64)):
        with pytest.raises(DataError, match=r"changed since the checkpoint.*Position 23"):
            back.check(other)
    for changed, name in (
        (replace(cursor, seed=8), "seed=8"),
        (replace(cursor, window=6), "data.window=6"),
        (replace(cursor, shuffle=False), "data.shuffle=False"),
        (replace(cursor, options="c4"), "the sources, their weights, the curriculum"),
    ):
        with pytest.raises(DataError, match=name):
            back.check(data, changed)
    Cursor(position=23, seed=7, samples=10, digest="a" * 64).check(data, cursor)


@pytest.mark.parametrize(
    ("value", "said"),
    [({}, "not a data cursor"), ({"position": 1, "seed": 0, "samples": 5, "digest": "x", "version": 9}, "version 9")],
)
def test_a_foreign_cursor_is_refused(value: dict, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Cursor.from_json(value)
