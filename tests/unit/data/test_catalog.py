"""The catalog: what the footers say, and clear words for data that cannot be trained on."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from shoal.data.catalog import read_catalog
from shoal.errors import DataError

pytestmark = pytest.mark.unit


def table(rows: int, base: int = 0) -> pa.Table:
    tokens = np.arange(base, base + rows * 4, dtype=np.int32)
    return pa.table(
        {
            "tokens": pa.FixedSizeListArray.from_arrays(pa.array(tokens), 4),
            "label": pa.array(np.arange(rows), pa.int64()),
            "name": [f"n{i}" for i in range(rows)],
            "notes": [[1.5] * 3] * rows,
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(table(10), tmp_path / "b.parquet", row_group_size=4)
    (tmp_path / "sub").mkdir()
    pq.write_table(table(3), tmp_path / "sub" / "a.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden.parquet").write_text("not Parquet")
    return tmp_path


def test_a_folder_is_read_from_its_footers(folder: Path) -> None:
    catalog = read_catalog(str(folder), ["tokens", "label"])
    assert catalog.samples == 13
    assert [(g.file, g.row_group, g.rows) for g in catalog.groups] == [(0, 0, 4), (0, 1, 4), (0, 2, 2), (1, 0, 3)]
    assert [Path(f).name for f in catalog.files] == ["b.parquet", "a.parquet"]
    assert [(c.name, c.dtype, c.shape) for c in catalog.columns] == [("tokens", "int32", (4,)), ("label", "int64", ())]
    assert catalog.sample_bytes == 24
    assert catalog.local
    assert pickle.loads(pickle.dumps(catalog)) == catalog
    assert catalog.order(seed=1).samples == 13


def test_without_columns_all_numbers_are_taken(folder: Path) -> None:
    assert read_catalog(str(folder)).column_names == ("tokens", "label", "notes")


def test_any_pyarrow_filesystem_will_do(folder: Path) -> None:
    inside = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
    catalog = read_catalog("sub", ["tokens"], filesystem=inside)
    assert (catalog.samples, catalog.files, catalog.local) == (3, ("sub/a.parquet",), False)
    assert pickle.loads(pickle.dumps(catalog)).filesystem == inside
    assert read_catalog(folder.as_uri(), ["tokens"]).samples == 13
    assert read_catalog(str(folder / "b.parquet"), ["tokens"]).samples == 10


def test_a_store_that_is_no_disk_will_do() -> None:
    """pyarrow's in-memory file system stands for an object store here: same interface, nothing local."""
    store, _ = pafs.FileSystem.from_uri("mock:///")
    store.create_dir("bucket/train")
    with store.open_output_stream("bucket/train/x.parquet") as out:
        pq.write_table(table(7), out)
    catalog = read_catalog("bucket/train", ["tokens"], filesystem=store)
    assert (catalog.samples, catalog.local) == (7, False)


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    pq.write_table(table(10), tmp_path / "one" / "x.parquet")
    pq.write_table(table(10), tmp_path / "two" / "x.parquet")
    pq.write_table(table(10, base=1), tmp_path / "three" / "x.parquet")
    one, two, three = (read_catalog(str(tmp_path / n)).digest for n in ("one", "two", "three"))
    assert one == two != three


def test_shapes_of_tensors_and_nested_lists(tmp_path: Path) -> None:
    images = np.zeros((5, 1, 8, 8), np.float32)
    nested = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(pa.array(images[:, 0].ravel()), 8), 8)
    pq.write_table(
        pa.table({"tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(images), "nested": nested}),
        tmp_path / "x.parquet",
    )
    columns = read_catalog(str(tmp_path)).columns
    assert [(c.name, c.shape) for c in columns] == [("tensor", (1, 8, 8)), ("nested", (8, 8))]


def refused(path: Path | str, *columns: str) -> str:
    with pytest.raises(DataError) as caught:
        read_catalog(str(path), columns)
    return str(caught.value)


def test_missing_paths_are_named_with_the_nearest(folder: Path) -> None:
    said = refused(folder / "sob")
    assert f"{folder / 'sob'} does not exist" in said
    assert 'did you mean "sub"?' in said
    assert "pyarrow cannot open" in refused("ftp://host/x")


def test_a_folder_without_parquet(tmp_path: Path) -> None:
    assert "empty" in refused(tmp_path)
    (tmp_path / "book.txt").write_text("x")
    said = refused(tmp_path)
    assert "book.txt" in said
    assert "shoal data prepare" in said


def test_damaged_files_are_named(folder: Path) -> None:
    good = (folder / "b.parquet").read_bytes()
    damaged = folder / "c.parquet"
    for content in (b"", b"PAR1", good[:-20], good[:-500] + bytes(492) + good[-8:]):
        damaged.write_bytes(content)
        assert str(damaged) in refused(folder, "tokens")


def test_no_rows(tmp_path: Path) -> None:
    pq.write_table(table(0), tmp_path / "x.parquet")
    assert "without a single row" in refused(tmp_path)


def test_missing_columns_list_what_is_there(folder: Path) -> None:
    said = refused(folder, "token")
    assert "no column 'token'" in said
    assert "label (int64)" in said
    assert 'did you mean "tokens"?' in said


def test_text_is_no_batch(folder: Path) -> None:
    assert "column 'name' is string" in refused(folder, "name")


def test_files_with_different_schemas(folder: Path) -> None:
    other = table(3).set_column(1, "label", pa.array([1.0, 2.0, 3.0]))
    pq.write_table(other, folder / "z.parquet")
    said = refused(folder, "label")
    assert "int64" in said
    assert "double" in said
    assert "z.parquet" in said
    assert read_catalog(str(folder), ["tokens"]).samples == 16, "columns that are not needed may differ"
    pq.write_table(table(3).drop_columns("label"), folder / "z.parquet")
    assert "has no such column" in refused(folder, "label")
