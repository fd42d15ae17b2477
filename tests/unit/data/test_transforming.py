"""The user's transforms without Ray: calls, keys, what comes out, and what is refused with which words."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data import transforming
from shoal.data.catalog import Catalog, read_catalog
from shoal.data.columns import Column, to_numpy
from shoal.data.order import Order
from shoal.data.pipeline import check_window, plans, read_calls, read_samples
from shoal.data.sources import resolve
from shoal.data.transforming import TRAIN, VALIDATION, Samples, Transforming
from shoal.data.trying import transformed
from shoal.errors import ConfigError, DataError, TaskError
from shoal.job import Curriculum, Data, Source
from tests.support.transforms import LENGTH, Failing, Hide, Wider, project, text_of, tokenise, write_texts

pytestmark = pytest.mark.unit

ROWS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"), ROWS)


def catalog_of(
    folder: Path, *steps: Any, raw: tuple[str, ...] = ("id", "text"), needed: tuple[str, ...] = ()
) -> Catalog:
    return transformed(read_catalog(str(folder), raw, raw=True), steps, needed, TRAIN)


def read(catalog: Catalog, order: Order, start: int, stop: int, **options: Any) -> Samples:
    """Positions from the window of `start` on."""
    parts = [
        s for task in plans(catalog, order, start, stop, **options) for s in read_samples(catalog, order.seed, task)
    ]
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def test_raw_columns_come_as_they_are_told(folder: Path) -> None:
    seen: list[Samples] = []

    def look(columns: Samples, keys: np.ndarray) -> Samples:
        seen.append(columns)
        return {"id": columns["id"]}

    columns = read_catalog(str(folder), raw=True).columns
    assert [(c.name, c.dtype, c.shape) for c in columns] == [
        ("id", "int64", ()), ("text", "object", ()), ("blob", "object", ()), ("ragged", "object", ()),
        ("kind", "object", ()), ("pair", "float64", (2,)),
    ]  # fmt: skip
    found = transforming.run(
        [look], transforming.arrays(dict(zip(*_raw(folder), strict=True)), columns), np.arange(20, dtype=np.uint64)
    )
    assert found["id"].tolist() == list(range(20))
    (got,) = seen
    assert got["text"].tolist() == [text_of(i) for i in range(20)]
    assert got["blob"].tolist() == [text_of(i).encode() for i in range(20)]
    assert [r.tolist() for r in got["ragged"]] == [list(range(i % 4)) for i in range(20)]
    assert got["ragged"][3].dtype == np.int16
    assert got["kind"].tolist()[:4] == ["shoal", "fish", "turn", "shoal"]
    assert got["pair"].tolist()[7] == [3.5, 3.5]


def _raw(folder: Path) -> tuple[list[str], list[pa.ChunkedArray]]:
    from shoal.data.groups import GroupReader, part_of

    catalog = read_catalog(str(folder), raw=True)
    table = GroupReader(catalog.filesystem, catalog.column_names).table(part_of(catalog, catalog.groups[0]))
    return table.column_names, table.columns


def test_all_kinds_of_columns_survive_the_way_through_windows(folder: Path) -> None:
    def check(columns: Samples, keys: np.ndarray) -> Samples:
        for row, i in enumerate(columns["id"].tolist()):
            assert columns["blob"][row] == text_of(i).encode()
            assert columns["ragged"][row].tolist() == list(range(i % 4))
            assert columns["kind"][row] == ("shoal", "fish", "turn")[i % 3]
            assert columns["pair"][row].tolist() == [i / 2, i / 2]
        return {"id": columns["id"]}

    catalog = catalog_of(folder, check, raw=())
    found = read(catalog, catalog.order(seed=1, window=30), 0, 2 * ROWS)
    assert sorted(found["id"].tolist()) == sorted(2 * list(range(ROWS)))


def test_samples_and_columns_are_found_before_anything_starts(folder: Path) -> None:
    catalog = catalog_of(folder, tokenise, Hide(0.5), needed=("tokens",))
    assert catalog.columns == (
        Column("id", "int64", ()), Column("inputs", "int64", (LENGTH,)), Column("tokens", "int64", (LENGTH,))
    )  # fmt: skip
    assert catalog.sample_bytes == 8 + 2 * 8 * LENGTH
    assert [c.name for c in catalog.raw] == ["id", "text"]
    assert catalog.digest == read_catalog(str(folder), ["id"]).digest, "the data is what it was"
    assert catalog.transforming is not None
    assert catalog.transforming.call_rows == 1024


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 70), st.integers(0, 2 * ROWS), st.integers(1, ROWS), st.integers(0, 2**63), st.integers(1, 9))
def test_a_sample_is_a_function_of_seed_and_position(
    folder: Path, window: int, start: int, count: int, seed: int, rows: int
) -> None:
    """Whatever was read before, in whatever tasks and calls."""
    whole = catalog_of(folder, tokenise, Hide(0.5))
    order = whole.order(seed=seed, window=window)
    first = order.window_at(start).start
    some = read(_with_calls(whole, rows), order, start, start + count, task_bytes=1)
    everything = read(whole, order, 0, first + len(some["id"]))
    for name, column in some.items():
        assert (column == everything[name][first : first + len(column)]).all(), name
    assert (some["tokens"] != some["inputs"]).any()


def _with_calls(catalog: Catalog, rows: int) -> Catalog:
    from dataclasses import replace

    assert catalog.transforming is not None
    return replace(catalog, transforming=replace(catalog.transforming, call_rows=rows))


def test_each_epoch_source_and_purpose_has_keys_of_its_own(folder: Path) -> None:
    catalog = catalog_of(folder, tokenise, Hide(0.5))
    made = catalog.transforming
    assert isinstance(made, Transforming)
    order = catalog.order(seed=3, window=16)
    found = read(catalog, order, 0, 2 * ROWS)
    one, two = ({i: found["inputs"][p] for p, i in enumerate(found["id"][e * ROWS :][:ROWS].tolist(), e * ROWS)}
                for e in (0, 1))  # fmt: skip
    assert set(one) == set(two) == set(range(ROWS))
    assert sum((one[i] != two[i]).any() for i in one) > ROWS // 2
    keys = [made.keys(3, 0, 99), made.keys(4, 0, 99), made.keys(3, 99, 198)]
    keys.append(
        transformed(read_catalog(str(folder), raw=True), [tokenise], [], VALIDATION).transforming.keys(3, 0, 99)
    )  # type: ignore[union-attr]
    assert len(set(np.concatenate(keys).tolist())) == 4 * 99
    assert (made.keys(3, 5, 9) == keys[0][5:9]).all()


def test_calls_hold_the_same_rows_however_blocks_are_cut(folder: Path) -> None:
    """As between Ray Data's reading and mapping: tables of calls joined, split, and mapped."""
    catalog = _with_calls(catalog_of(folder, tokenise, project), 7)
    made = catalog.transforming
    assert made is not None
    order = catalog.order(seed=2, window=25)
    (task,) = plans(catalog, order, 0, ROWS)
    windows = list(read_calls(catalog.filesystem, made, order.seed, task))
    assert [t.num_rows for t in windows] == [5, 5], "windows of 30 rows, 7 to a call"
    joined = pa.concat_tables(windows)
    want = [t for w in windows for t in made.tables(w)]
    for cut in range(1, joined.num_rows):
        got = [t for part in (joined.slice(0, cut), joined.slice(cut)) for t in made.tables(part)]
        assert got == want, cut
    x = np.concatenate([to_numpy("x", t["x"]) for t in want])
    assert x.tobytes() == read(catalog, order, 0, ROWS)["x"].tobytes()


def test_memory_is_counted_before_and_after(folder: Path) -> None:
    def huge(columns: Samples, keys: np.ndarray) -> Samples:
        return {"x": np.zeros((len(keys), 1 << 20), np.uint8)}

    catalog = catalog_of(folder, huge)
    assert catalog.sample_bytes == 1 << 20
    assert catalog.row_bytes == read_catalog(str(folder), ["text"], raw=True).sample_bytes < 1000
    assert catalog.transforming is not None
    assert catalog.transforming.call_rows == 4
    check_window(catalog, 8192)  # a task holds raw rows only
    order = catalog.order(seed=0, window=20)
    assert [len(t) for t in plans(catalog, order, 0, ROWS)] == [1, 1, 1], "a window of samples is enough for a task"


def test_transforms_travel_without_their_module(folder: Path) -> None:
    catalog = catalog_of(folder, tokenise)
    again = pickle.loads(pickle.dumps(catalog))
    assert again == catalog
    assert b"tokenise" not in pickle.dumps(again.columns)


STATE = np.random.default_rng(0)


def _made(change: Callable[[Samples, np.ndarray], Any]) -> Callable[[Samples, np.ndarray], Any]:
    def step(columns: Samples, keys: np.ndarray) -> Any:
        return change(tokenise(columns, keys), keys)

    return step


def _ragged(columns: Samples, keys: np.ndarray) -> Samples:
    out = np.empty(len(keys), object)
    out[:] = [np.zeros(i) for i in range(len(keys))]
    return {"tokens": out}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, k: None, r"step returned NoneType None; return a dict of arrays"),
        (lambda c, k: {}, r"step returned dict \{\}; return a dict"),
        (lambda c, k: {1: c["tokens"]}, r"step returned dict .*; return a dict"),
        (lambda c, k: {"tokens": c["tokens"].tolist()}, r"returned list \[\[.* as column 'tokens'; return a NumPy"),
        (lambda c, k: {"tokens": c["tokens"][1:]}, r"got 4 rows and returned column 'tokens' of shape \[3, 16\]"),
        (lambda c, k: {"tokens": np.float32(1)}, r"returned float32 .* as column 'tokens'"),
        (lambda c, k: {"tokens": np.array(1.0)}, r"got 4 rows and returned column 'tokens' of shape \[\]"),
        (lambda c, k: {"tokens": np.array(["a"] * len(k))}, r"column 'tokens' of <U1 .*takes arrays of numbers"),
        (_ragged, r"gave column 'tokens' of object \(the first: ndarray array\(\[\].*pad or cut samples to one shape"),
        (lambda c, k: {"tokens": c["tokens"] * 1j}, r"column 'tokens' of complex128"),
        (lambda c, k: {"tokens": c["tokens"][:, :0]}, r"column 'tokens' with empty samples, shape \[0\]"),
        (lambda c, k: {"tokens": c["tokens"] - c["tokens"].mean(0)}, r"'tokens' for each row alone .*by itself"),
        (lambda c, k: {"tokens": np.sort(c["tokens"], 0)}, r"other values of column 'tokens' for each row alone"),
        (lambda c, k: {"tokens": c["tokens"][:, : 8 + len(k)]}, r"other values of column 'tokens' for each row alone"),
        (lambda c, k: {"tokens": c["tokens"] + STATE.integers(99, size=c["tokens"].shape)}, r"second time.*the keys"),
        (lambda c, k: c["nothing"], r"the transform .*step failed: KeyError: 'nothing'\nTraceback"),
    ],
)  # fmt: skip
def test_what_is_no_sample_is_refused_by_name(folder: Path, change: Any, message: str) -> None:
    with pytest.raises(TaskError, match=f"(?s){message}"):
        catalog_of(folder, _made(change))


def test_rounding_alone_is_no_dependence_on_other_rows(folder: Path) -> None:
    def scaled(columns: Samples, keys: np.ndarray) -> Samples:
        return {"x": columns["id"] / 3 + 1e-9 * len(keys)}

    assert catalog_of(folder, scaled).columns == (Column("x", "float64", ()),)


def test_what_the_task_needs_must_come_out(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"give id \(int64 \[\]\), tokens .*needs column 'token'; did you mean \"tokens\""
    ):
        catalog_of(folder, tokenise, needed=("token",))
    with pytest.raises(DataError, match=r"has no column 'txt'.*did you mean \"text\".*the right one in data\.columns"):
        catalog_of(folder, tokenise, raw=("txt",))


def test_an_error_far_into_the_data_tells_the_transform_and_the_users_traceback(folder: Path) -> None:
    catalog = catalog_of(folder, tokenise, Failing(at=ROWS - 1))
    with pytest.raises(TaskError) as caught:
        read(catalog, catalog.order(seed=0), 0, ROWS)
    said = str(caught.value)
    assert said.startswith("the transform Failing failed: KeyError: 'no such column'\nTraceback")
    assert "in raise_it" in said
    assert 'columns["no such column"]' in said
    assert "transforming.py" not in said, "our own frames do not interest the user"


def test_samples_of_another_shape_far_into_the_data_are_refused(folder: Path) -> None:
    catalog = catalog_of(folder, tokenise, Wider(at=ROWS - 1))
    with pytest.raises(TaskError, match=r"tokenise, Wider together gave .*tokens \(int64 \[17\]\).*for the first "
                       r"samples .*tokens \(int64 \[16\]\); give all samples"):  # fmt: skip
        read(catalog, catalog.order(seed=0), 0, ROWS)


def test_missing_values_name_file_and_row_group(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(8), "text": ["a"] * 7 + [None]}), tmp_path / "x.parquet", row_group_size=4)
    catalog = catalog_of(tmp_path, tokenise)
    with pytest.raises(DataError, match=r"x\.parquet, row group 1: column 'text' holds 1 missing values; fill them in"):
        read(catalog, catalog.order(seed=0), 0, 8)


def test_transforms_that_cannot_travel_are_refused(folder: Path) -> None:
    @dataclass(frozen=True)
    class Holding:
        file: Any

        def __call__(self, columns: Samples, keys: np.ndarray) -> Samples:
            return columns

    with (folder / "a.parquet").open("rb") as file, pytest.raises(ConfigError, match=r"cannot be sent .*TypeError"):
        catalog_of(folder, Holding(file))


def test_all_sources_and_the_held_out_data_go_through_them(folder: Path, tmp_path: Path) -> None:
    other = write_texts(tmp_path / "other", 20, first=1000)
    sources = (Source(name="one", train=str(folder)), Source(name="two", train=str(other)))
    steps: dict[str, Any] = {"columns": ("id", "text"), "transforms": (tokenise, Hide())}
    found = resolve(Data(sources=sources, validation=str(other), **steps), tmp_path, ["tokens"])
    assert [c.transforming.purpose for c in found.train.catalogs if c.transforming] == [TRAIN, TRAIN]
    assert found.validation is not None
    assert found.validation.transforming is not None
    assert found.validation.transforming.purpose == VALIDATION
    assert found.train.columns == found.validation.columns
    with pytest.raises(DataError, match=r"column 'text' is string, .*data\.transforms"):
        resolve(Data(train=str(folder)), tmp_path, ["text"])


def test_the_tasks_columns_are_read_where_none_are_named(folder: Path, tmp_path: Path) -> None:
    found = resolve(Data(train=str(folder), transforms=(Failing(at=-1),)), tmp_path, ["id", "pair"]).train
    assert [c.name for c in found.catalogs[0].raw] == ["id", "pair"]
    assert [(c.name, c.shape) for c in found.columns] == [("id", ()), ("pair", (2,))]


def test_curricula_rank_raw_columns(folder: Path, tmp_path: Path) -> None:
    data = Data(
        train=str(folder), columns=("id", "text"), transforms=(tokenise,), curriculum=Curriculum(difficulty="id")
    )
    train = resolve(data, tmp_path, ["tokens"]).train
    (order,) = train.orders(data, None, seed=0, total=10 * ROWS)
    early = read(train.catalogs[0], order, 0, 10)
    assert early["id"].max() < ROWS // 2
    ranked = Data(train=str(folder), columns=("text",), transforms=(tokenise,), curriculum=Curriculum())
    text = resolve(Data(train=str(folder), columns=("text", "id"), transforms=(tokenise,)), tmp_path, ["tokens"]).train
    with pytest.raises(DataError, match=r"column 'text' is string, and data\.curriculum ranks rows"):
        text.orders(ranked, None, seed=0, total=ROWS)
