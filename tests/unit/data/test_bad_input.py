"""Data that changes or is damaged while a run reads it: named with file and row group, never trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoal.data.catalog import Catalog, read_catalog
from shoal.data.order import Cursor
from shoal.data.pipeline import plans, read_windows
from shoal.errors import DataError
from tests.support.bad_parquet import break_group, change_values, write

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.data.groups.time.sleep", lambda s: None)


def read(catalog: Catalog) -> list[int]:
    order = catalog.order(seed=0, shuffle=False, window=20)
    tables = [
        table
        for task in plans(catalog, order, 0, catalog.samples)
        for table in read_windows(catalog.filesystem, catalog.column_names, task)
    ]
    return np.concatenate([t["id"].to_numpy() for t in tables]).tolist()


def refused(catalog: Catalog) -> str:
    with pytest.raises(DataError) as caught:
        read(catalog)
    return str(caught.value)


def test_a_damaged_row_group_ends_the_run_with_the_way_out(tmp_path: Path) -> None:
    catalog = read_catalog(str(write(tmp_path, {"a.parquet": 40})), ["id"])
    break_group(tmp_path / "a.parquet", 2)
    said = refused(catalog)
    assert f"{tmp_path / 'a.parquet'}: row group 2 cannot be read (after 3 attempts" in said
    assert "`shoal data verify --write-skip`" in said


def test_a_damage_that_still_decodes_is_seen_where_the_writer_wrote_checksums(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 40}, compression="none", write_page_checksum=True)
    catalog = read_catalog(str(tmp_path), ["id"])
    assert read(catalog) == list(range(40))
    change_values(tmp_path / "a.parquet", 1)
    assert "row group 1 cannot be read" in refused(catalog)


def test_a_file_that_was_replaced_by_one_with_as_many_rows(tmp_path: Path) -> None:
    catalog = read_catalog(str(write(tmp_path, {"a.parquet": 40})), ["id"])
    old = (tmp_path / "a.parquet").stat().st_size
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.append_column("more", pa.array(range(40))), tmp_path / "a.parquet", row_group_size=10)
    new = (tmp_path / "a.parquet").stat().st_size
    said = refused(catalog)
    assert f"row group 0 lies in a file of {new} bytes, it had {old} when the run began" in said


def test_a_file_that_changed_is_refused_on_resume(tmp_path: Path) -> None:
    """As many samples, of the same size: the statistics in the footers tell."""
    then = read_catalog(str(write(tmp_path, {"a.parquet": 40})), ["id"])
    cursor = Cursor(position=8, seed=0, samples=then.samples, digest=then.digest)
    cursor.check(read_catalog(str(tmp_path), ["id"]))
    table = pq.read_table(tmp_path / "a.parquet")
    ids = pa.array(np.arange(1, 41))
    pq.write_table(table.set_column(0, "id", ids), tmp_path / "a.parquet", row_group_size=10, use_dictionary=False)
    with pytest.raises(DataError, match=r"training data changed since the checkpoint.*bring the old data back"):
        cursor.check(read_catalog(str(tmp_path), ["id"]))


def test_empty_files_and_empty_row_groups_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 20, "b.parquet": 0, "d.parquet": 10})
    table = pq.read_table(tmp_path / "a.parquet")
    with pq.ParquetWriter(tmp_path / "c.parquet", table.schema) as writer:
        for rows in (0, 5, 0):
            writer.write_table(table.slice(0, rows))
    catalog = read_catalog(str(tmp_path), ["id"])
    assert read(catalog) == [*range(20), *range(5), *range(20, 30)]


def test_an_empty_file_of_another_type_is_refused_all_the_same(tmp_path: Path) -> None:
    """Whoever writes into it later would find out in the middle of a run."""
    write(tmp_path, {"a.parquet": 20})
    pq.write_table(pa.table({"id": pa.array([], pa.int32())}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"column 'id' is int64 in .*a\.parquet, but .*b\.parquet has it as int32"):
        read_catalog(str(tmp_path), ["id"])
