"""Bad row groups that a list beside the data leaves out: exact, in the digest, and never by accident."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.audit.epochs import check_order
from shoal.data.catalog import Catalog, read_catalog
from shoal.data.order import Cursor
from shoal.data.pipeline import plans, read_windows
from shoal.data.skipping import SKIP, Skipped, digest_without, fingerprint, read_skips, write_skips
from shoal.errors import DataError
from tests.support.bad_parquet import GROUP, break_group, write

pytestmark = pytest.mark.unit

LOCAL = pafs.LocalFileSystem()


def entry(folder: Path, file: str, row_group: int | None, rows: int = GROUP) -> Skipped:
    return Skipped(file, row_group, rows, "damaged", fingerprint(LOCAL, str(folder / file)))


def leave_out(folder: Path, *entries: Skipped) -> None:
    write_skips(LOCAL, str(folder), entries)


def ids_of(catalog: Catalog, positions: int, *, seed: int = 3, window: int = 25) -> list[int]:
    order = catalog.order(seed=seed, window=window)
    tasks = plans(catalog, order, 0, positions)
    tables = [t for task in tasks for t in read_windows(catalog.filesystem, catalog.column_names, task)]
    return np.concatenate([t["id"].to_numpy() for t in tables])[:positions].tolist()


def test_what_is_left_out_is_never_read_and_all_else_comes_once_in_an_epoch(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write(tmp_path, {"a.parquet": 45, "sub/b.parquet": 30})
    whole = read_catalog(str(tmp_path), ["id"])
    break_group(tmp_path / "a.parquet", 1)
    break_group(tmp_path / "sub" / "b.parquet", 0)
    leave_out(tmp_path, entry(tmp_path, "sub/b.parquet", 0), entry(tmp_path, "a.parquet", 1))
    catalog = read_catalog(str(tmp_path), ["id"])
    assert [(g.file, g.row_group) for g in catalog.groups] == [(0, 0), (0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]
    assert (catalog.samples, len(catalog.skipped), catalog.sample_bytes) == (55, 2, whole.sample_bytes)
    assert pickle.loads(pickle.dumps(catalog)) == catalog
    left = sorted({*range(75)} - {*range(10, 20)} - {*range(45, 55)})
    seen = ids_of(catalog, 2 * 55)
    assert sorted(seen[:55]) == sorted(seen[55:]) == left
    assert check_order(catalog.order(seed=3, window=25), range(1, 4)) == []


def test_a_file_without_a_readable_footer_can_be_left_out_whole(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 20, "b.parquet": 20})
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"a\.parquet is not a Parquet file"):
        read_catalog(str(tmp_path))
    leave_out(tmp_path, entry(tmp_path, "a.parquet", None, rows=0))
    catalog = read_catalog(str(tmp_path), ["id"])
    assert [Path(f).name for f in catalog.files] == ["b.parquet"]
    assert sorted(ids_of(catalog, 20)) == list(range(20, 40))
    leave_out(tmp_path, *(entry(tmp_path, f, None) for f in ("a.parquet", "b.parquet")))
    with pytest.raises(DataError, match=r"without a single row that is not left out by .*_skip\.json"):
        read_catalog(str(tmp_path))


def test_the_list_counts_into_the_digest_and_a_run_without_it_does_not_go_on(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 40})
    catalogs = [read_catalog(str(tmp_path), ["id"])]
    for groups in ((1,), (2,), (1, 2)):
        leave_out(tmp_path, *(entry(tmp_path, "a.parquet", g) for g in groups))
        catalogs.append(read_catalog(str(tmp_path), ["id"]))
    assert len({c.digest for c in catalogs}) == 4
    cursor = Cursor(position=8, seed=0, samples=catalogs[0].samples, digest=catalogs[0].digest)
    with pytest.raises(DataError, match="training data changed since the checkpoint: it had 40 samples"):
        cursor.check(catalogs[1])
    leave_out(tmp_path)
    assert not (tmp_path / SKIP).exists()
    assert read_catalog(str(tmp_path), ["id"]) == catalogs[0]


def test_prepared_data_keeps_its_own_digest_below_the_list(tmp_path: Path) -> None:
    folder = write(tmp_path / "train", {"a.parquet": 40})
    said = {"splits": {"train": {"samples": 40, "digest": "d" * 64}}}
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    assert read_catalog(str(folder), ["id"]).digest == "d" * 64
    skipped = entry(folder, "a.parquet", 3)
    leave_out(folder, skipped)
    assert read_catalog(str(folder), ["id"]).digest == digest_without("d" * 64, [skipped])


def test_a_list_is_for_the_files_that_were_looked_at(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 40, "b.parquet": 40})
    leave_out(tmp_path, entry(tmp_path, "a.parquet", 1), entry(tmp_path, "b.parquet", 0))
    write(tmp_path, {"b.parquet": 41})
    with pytest.raises(DataError, match=r"_skip\.json leaves out parts of b\.parquet, but that file has changed"):
        read_catalog(str(tmp_path))
    assert read_catalog(str(tmp_path / "a.parquet"), ["id"]).samples == 30, "one file alone: its part of the list"
    (tmp_path / "b.parquet").unlink()
    assert read_catalog(str(tmp_path), ["id"]).samples == 30, "what is said of files that are gone says nothing"


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"format": "shoal-skip", "version": 2, "skip": []}', '{"format": "shoal-skip", "version": 1}'],
)
def test_a_list_that_cannot_be_understood_is_not_passed_over(tmp_path: Path, content: str) -> None:
    write(tmp_path, {"a.parquet": 20})
    (tmp_path / SKIP).write_text(content)
    with pytest.raises(DataError, match=r"_skip\.json is no list of row groups.*shoal data verify --write-skip"):
        read_catalog(str(tmp_path))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"_skip\.json cannot be written"):
        write_skips(LOCAL, str(tmp_path / "none"), [Skipped("a", 0, 1, "r", "f")])


entries = st.builds(
    Skipped, st.sampled_from("abc"), st.none() | st.integers(0, 5), st.integers(0, 9), st.text(max_size=5), st.just("f")
)


@settings(deadline=None)
@given(st.lists(entries, unique_by=lambda e: e.key))
def test_lists_survive_writing_and_their_digest_knows_no_order(found: list[Skipped]) -> None:
    store, _ = pafs.FileSystem.from_uri("mock:///")
    store.create_dir("data")
    write_skips(store, "data", found)
    read = read_skips(store, "data")
    assert set(read) == set(found)
    assert digest_without("d", found) == digest_without("d", read)
    for i in range(len(found)):
        assert digest_without("d", found) != digest_without("d", found[:i] + found[i + 1 :])
