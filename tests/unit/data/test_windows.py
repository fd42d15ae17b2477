"""From a task's plan to a table of samples: the reading half of the pipeline, without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.catalog import Catalog, read_catalog
from shoal.data.columns import to_arrow, to_numpy
from shoal.data.pipeline import check_window, plans, read_windows
from shoal.errors import DataError

pytestmark = pytest.mark.unit


def write(folder: Path, rows: int, group: int) -> Catalog:
    """Samples whose `id` is their place in file order; `x` is [id, id + 0.5]."""
    half = rows // 2
    for name, ids in (("a", np.arange(half)), ("b", np.arange(half, rows))):
        x = pa.FixedSizeListArray.from_arrays(pa.array(np.stack([ids, ids + 0.5], 1).ravel().astype(np.float32)), 2)
        table = pa.table({"id": ids, "x": x, "text": ["t"] * len(ids)})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=group)
    return read_catalog(str(folder), ["id", "x"])


def read(catalog: Catalog, tasks: list) -> list[pa.Table]:
    return [t for task in tasks for t in read_windows(catalog.filesystem, catalog.column_names, task)]


@pytest.mark.parametrize("window", [1, 7, 30, 1000])
def test_the_pipeline_carries_out_the_order(tmp_path: Path, window: int) -> None:
    catalog = write(tmp_path, 60, 8)
    order = catalog.order(seed=5, window=window)
    first = np.cumsum([0] + [g.rows for g in catalog.groups])
    start, stop = 37, 150
    tables = read(catalog, list(plans(catalog, order, start, stop, task_bytes=window * catalog.sample_bytes)))
    ids = np.concatenate([t["id"].to_numpy() for t in tables])
    begin = order.window_at(start).start
    want = [first[g] + row for g, row in map(order.sample, range(begin, begin + len(ids)))]
    assert ids.tolist() == want
    assert begin + len(ids) == order.window_at(stop - 1).stop
    x = np.concatenate([to_numpy("x", t["x"]) for t in tables])
    assert (x == np.stack([ids, ids + 0.5], 1)).all()


def test_small_data_is_read_once_for_several_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = write(tmp_path, 20, 10)
    order = catalog.order(seed=0, window=100)
    tasks = list(plans(catalog, order, 0, 200, task_bytes=100 * catalog.sample_bytes))
    assert [len(t) for t in tasks] == [5, 5]
    reads: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **kw: reads.append(i) or read_row_group(self, i, **kw)
    )
    tables = read(catalog, tasks[:1])
    assert len(reads) == 2
    for t in tables:
        assert sorted(t["id"].to_pylist()) == list(range(20))


def test_errors_name_file_and_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.data.groups.time.sleep", lambda s: None)
    catalog = write(tmp_path, 60, 8)
    tasks = list(plans(catalog, catalog.order(seed=5, shuffle=False, window=8), 0, 60, task_bytes=1))
    file = tmp_path / "b.parquet"
    good = file.read_bytes()

    def said() -> str:
        with pytest.raises(DataError, match=r"b\.parquet") as caught:
            read(catalog, tasks)
        return str(caught.value)

    file.write_bytes(good[:40] + bytes(200) + good[240:])
    assert "row group 0 cannot be read" in said()
    pq.write_table(pq.read_table(tmp_path / "a.parquet"), file, row_group_size=5)
    assert "row group 0 has 5 rows, it had 8" in said()
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.set_column(0, "id", pa.array([None] * 30, pa.int64())), file, row_group_size=8)
    assert "row group 0: column 'id' holds 8 missing values" in said()
    file.unlink()
    assert "is gone" in said()


def test_lists_become_arrays_if_their_lengths_agree(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [[[1, 2, 3], [4, 5, 6]]] * 5}), tmp_path / "x.parquet", row_group_size=2)
    catalog = read_catalog(str(tmp_path))
    tasks = list(plans(catalog, catalog.order(seed=0, window=5), 0, 5))
    assert to_numpy("x", read(catalog, tasks)[0]["x"]).shape == (5, 2, 3)

    pq.write_table(pa.table({"x": [[1], [1], [1, 2], [1, 2]]}), tmp_path / "x.parquet", row_group_size=2)
    catalog = read_catalog(str(tmp_path))
    with pytest.raises(DataError, match=r"different shapes \(\[\(1,\), \(2,\)\]\)"):
        read(catalog, list(plans(catalog, catalog.order(seed=0, window=5), 0, 4)))

    pq.write_table(pa.table({"x": [[1], [1, 2, 3]]}), tmp_path / "x.parquet")
    catalog = read_catalog(str(tmp_path))
    with pytest.raises(DataError, match=r"row group 0: column 'x' holds lists of 1 to 3 items.*shoal data prepare"):
        read(catalog, list(plans(catalog, catalog.order(seed=0, window=5), 0, 2)))


def test_a_busy_storage_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = write(tmp_path, 20, 10)
    tasks = list(plans(catalog, catalog.order(seed=0, window=20), 0, 20))
    pauses: list[float] = []
    monkeypatch.setattr("shoal.data.groups.time.sleep", pauses.append)

    class Flaky(LocalFileSystem):
        """The local disk, behind a door that is shut the first few times."""

        cachable = False

        def __init__(self, failures: int) -> None:
            super().__init__()
            self.failures = failures

        def open(self, path: str, *args: Any, **kwargs: Any) -> Any:
            self.failures -= 1
            if self.failures >= 0:
                raise OSError("slow down")
            return super().open(path, *args, **kwargs)

    def behind(failures: int) -> Catalog:
        return replace(catalog, filesystem=pafs.PyFileSystem(pafs.FSSpecHandler(Flaky(failures))))

    assert len(read(behind(2), tasks)[0]) == 20
    assert pauses == [1.0, 2.0]
    with pytest.raises(DataError, match="after 3 attempts: slow down"):
        read(behind(99), tasks)


def test_windows_that_no_task_could_hold_are_refused(tmp_path: Path) -> None:
    catalog = write(tmp_path, 60, 8)
    check_window(catalog, 1 << 20)
    large = replace(catalog, sample_bytes=1 << 20)
    with pytest.raises(DataError, match=r"8\.0 GiB.*set data.window to 1016 or less"):
        check_window(large, 8192)
    with pytest.raises(DataError, match="row groups of at most 2 rows"):
        check_window(replace(catalog, sample_bytes=1 << 28), 8192)


@given(
    st.builds(lambda rows, inner: [rows, *inner], st.integers(0, 5), st.lists(st.integers(1, 4), max_size=3)),
    st.sampled_from(["uint8", "int32", "float16", "float32", "int64"]),
    st.integers(0, 3),
)
def test_numpy_to_arrow_and_back(shape: list[int], dtype: str, cut: int) -> None:
    array = np.arange(np.prod(shape), dtype=np.int64).astype(dtype).reshape(shape)
    arrow = to_arrow(array)
    assert len(arrow) == shape[0]
    part = arrow.slice(min(cut, shape[0]))
    back = to_numpy("x", pa.chunked_array([part.slice(0, 1), part.slice(1)]))
    assert back.dtype == array.dtype
    assert (back == array[min(cut, shape[0]) :]).all()


def test_booleans_and_views() -> None:
    assert to_numpy("b", pa.array([True, False, True])).tolist() == [True, False, True]
    arrow = to_arrow(np.arange(12, dtype=np.int32).reshape(4, 3))
    view = to_numpy("x", arrow.slice(1, 2))
    assert view.tolist() == [[3, 4, 5], [6, 7, 8]]
    assert view.base is not None
    assert view.__array_interface__["data"][0] == arrow.values.buffers()[1].address + 12, "no copy"
