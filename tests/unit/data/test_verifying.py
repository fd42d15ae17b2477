"""Everything that is wrong with a data set is found before a run stumbles over it, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data import corpora
from shoal.data.catalog import read_catalog
from shoal.data.content_digest import ContentDigest
from shoal.data.shards import ShardWriter, write_manifest
from shoal.data.skipping import SKIP, Skipped, fingerprint, write_skips
from shoal.data.verifying import Verified, disagreement, leave_out, verify
from shoal.errors import DataError
from tests.support.bad_parquet import GROUP, break_group, change_values, patch, write

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.data.groups.time.sleep", lambda s: None)


def said(found: Verified) -> list[tuple[str, int | None]]:
    return [(p.file, p.row_group) for p in found.problems]


def test_good_data_is_read_whole_and_in_order(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 45, "b.parquet": 30})
    heard: list[tuple[int, int, int]] = []
    found = verify(str(tmp_path), threads=3, progress=lambda *said: heard.append(said))
    assert found.good
    assert (found.row_groups, found.samples, found.read_bytes) == (8, 75, 75 * 16)
    assert found.columns == ("id", "x")
    assert [done for done, _, _ in heard] == list(range(1, 9))
    assert heard[-1] == (8, 8, 75 * 16)
    assert found.digest == read_catalog(str(tmp_path)).digest
    assert not found.recomputed, "there is no manifest to compare with"


def test_row_groups_that_cannot_be_read_are_all_named(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 45, "b.parquet": 30})
    break_group(tmp_path / "a.parquet", 1)
    break_group(tmp_path / "a.parquet", 4)
    break_group(tmp_path / "b.parquet", 2, column=1)
    found = verify(str(tmp_path))
    assert said(found) == [("a.parquet", 1), ("a.parquet", 4), ("b.parquet", 2)]
    assert found.digest is None
    assert [p.rows for p in found.problems] == [10, 5, 10]
    for problem in found.problems:
        assert problem.text.startswith("cannot be read (after 3 attempts: ")
        assert problem.text.isprintable()
        assert "shoal" not in problem.text
    assert said(verify(str(tmp_path), ["id"])) == said(found)[:2], "of other columns nothing is read"


def test_page_checksums_are_compared(tmp_path: Path) -> None:
    """One changed value that is still a number, and inside the statistics' range: only a checksum tells."""
    for checked in (False, True):
        folder = write(tmp_path / str(checked), {"a.parquet": 40}, compression="none", write_page_checksum=checked,
                       column_encoding="PLAIN")  # fmt: skip
        at = pq.ParquetFile(folder / "a.parquet").metadata.row_group(1).column(0)
        middle = at.data_page_offset + at.total_compressed_size - 3 * 8
        patch(folder / "a.parquet", middle, np.int64(12).tobytes())
        assert said(verify(str(folder))) == ([("a.parquet", 1)] if checked else [])


def test_statistics_that_the_content_does_not_have(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 40}, compression="none")
    change_values(tmp_path / "a.parquet", 2)
    (problem,) = verify(str(tmp_path)).problems
    assert (problem.file, problem.row_group, problem.skippable) == ("a.parquet", 2, True)
    assert "the footer says from 20 to 29" in problem.text


@settings(deadline=None)
@given(
    st.sampled_from(["uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64", "bool"]),
    st.integers(1, 50),
    st.sampled_from(["flat", "fixed", "list", "nested"]),
    st.integers(0, 1 << 30),
)
def test_honest_statistics_are_believed(dtype: str, rows: int, kind: str, seed: int) -> None:
    """Whatever the type, with numbers that are none, infinities and both zeros among the floats."""
    random = np.random.default_rng(seed)
    shape = {"flat": (rows,), "fixed": (rows, 3), "list": (rows, 3), "nested": (rows, 2, 2)}[kind]
    array = random.integers(0, 1 << 15, shape).astype(dtype)
    if array.dtype.kind == "f":
        array = random.choice(np.asarray([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -3.25]), shape).astype(dtype)
    flat = pa.array(array.reshape(-1))
    for size in reversed(shape[1:]):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    arrow = pa.array(flat.to_pylist(), pa.list_(flat.type.value_type)) if kind == "list" else flat
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": arrow, "x.y": arrow}), sink)
    group = pq.ParquetFile(pa.BufferReader(sink.getvalue())).metadata.row_group(0)
    assert disagreement(group, {"x": array, "x.y": array}) is None
    if array.dtype.kind in "ui" and kind != "flat" and array.max() > array.min():
        assert disagreement(group, {"x": np.full_like(array, array.min())}) is not None


def test_missing_values_and_lists_of_several_lengths(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"x": [[1], [1], [1, 2], [1, 2], [1, 2], [1, 2]]}), tmp_path / "a.parquet", row_group_size=2
    )
    pq.write_table(pa.table({"x": [[1, 2], [1], [1, 2], [None, 2]]}), tmp_path / "b.parquet", row_group_size=2)
    found = verify(str(tmp_path))
    assert said(found) == [("a.parquet", 0), ("b.parquet", 0), ("b.parquet", 1)]
    texts = [p.text for p in found.problems]
    assert "samples of shape [1], most others have [2]" in texts[0]
    assert "lists of 1 to 2 items" in texts[1]
    assert "missing values" in texts[2]


def test_files_that_are_none_have_other_types_or_no_rows(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 20, "c.parquet": 0, "d.parquet": 20})
    (tmp_path / "b.parquet").write_bytes(b"")
    pq.write_table(pa.table({"id": [1.0], "x": [[1.0, 2.0]]}), tmp_path / "e.parquet")
    found = verify(str(tmp_path))
    assert said(found) == [("b.parquet", None), ("e.parquet", None)]
    assert [p.skippable for p in found.problems] == [True, False]
    assert "column 'id' is int64 in" in found.problems[1].text
    assert found.notes == ("c.parquet has no rows; training passes over it",)
    assert read_catalog(str(tmp_path / "c.parquet").replace("c.", "a.")).samples == 20
    for bad in ("b", "e"):
        (tmp_path / f"{bad}.parquet").unlink()
    assert verify(str(tmp_path)).good
    assert read_catalog(str(tmp_path)).samples == 40, "an empty file is no harm"


def prepared(folder: Path) -> Path:
    writer = ShardWriter(folder / "train", {"block": 4}, shard_bytes=4 * 3000)
    blocks = np.random.default_rng(0).integers(0, 256, (7000, 4), dtype=np.uint8)
    for part in np.array_split(blocks, 5):
        writer.add({"tokens": part, "segments": part // 2})
    writer.close()
    write_manifest(folder, {"splits": {"train": {"samples": writer.samples, "digest": writer.digest}}})
    return folder / "train"


def test_prepared_data_is_hashed_again(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "one")
    found = verify(str(folder), threads=4)
    assert found.good
    assert found.recomputed
    assert not verify(str(folder), ["tokens"]).recomputed, "one column is not all of it"
    other = ShardWriter(folder, {}, shard_bytes=1 << 30)
    table = pq.read_table(folder / "part-00001.parquet")
    other.add({n: np.stack(table[n].to_numpy()) for n in ("tokens", "segments")})
    other.close()  # the first file, with the samples of the second
    (problem,) = verify(str(folder)).problems
    assert problem.file == "manifest.json"
    assert not problem.skippable
    folder = prepared(tmp_path / "two")
    (folder / "part-00000.parquet").unlink()
    (problem,) = verify(str(folder)).problems
    assert "it says that there are 7000 samples" in problem.text


def test_built_in_data_is_good(tmp_path: Path) -> None:
    folder = corpora.digits(tmp_path)
    for split in ("train", "validation"):
        found = verify(str(folder / split))
        assert found.good
        assert found.recomputed


def test_the_digest_knows_no_parts() -> None:
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    whole, parts = ContentDigest(), ContentDigest()
    whole.add({"a": rows, "b": rows[:, 0]})
    for low, high in ((0, 7), (7, 8), (8, 20)):
        parts.add({"b": rows[low:high, 0], "a": rows[low:high]})
    assert whole.hexdigest() == parts.hexdigest()


def test_what_is_bad_can_be_left_out_and_taken_back(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 45, "b.parquet": 30, "c.parquet": 20})
    whole = (tmp_path / "b.parquet").read_bytes()
    break_group(tmp_path / "a.parquet", 1)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    new = leave_out(verify(str(tmp_path)))
    assert [(e.file, e.row_group) for e in new] == [("a.parquet", 1), ("c.parquet", None)]
    assert read_catalog(str(tmp_path), ["id"]).samples == 65
    again = verify(str(tmp_path))
    assert again.good
    assert len(again.left_out) == 2
    assert again.digest == read_catalog(str(tmp_path)).digest

    break_group(tmp_path / "b.parquet", 0)
    assert said(verify(str(tmp_path))) == [("b.parquet", 0)]
    assert len(leave_out(verify(str(tmp_path / "b.parquet")))) == 1, "one file alone"
    assert read_catalog(str(tmp_path), ["id"]).samples == 55, "what was said of the others stays"

    (tmp_path / "b.parquet").write_bytes(whole)
    found = verify(str(tmp_path))
    assert said(found) == [(SKIP, None), ("a.parquet", 1), ("c.parquet", None)], "the list is about another file"
    leave_out(found)
    assert read_catalog(str(tmp_path), ["id"]).samples == 65


def test_what_is_left_out_for_nothing_is_told(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 40})
    print_of_a = fingerprint(pafs.LocalFileSystem(), str(tmp_path / "a.parquet"))
    write_skips(
        pafs.LocalFileSystem(), str(tmp_path), [Skipped("a.parquet", 2, 10, "the network was down", print_of_a)]
    )
    found = verify(str(tmp_path))
    assert found.good
    assert found.notes == (
        f"a.parquet, row group 2 is left out by {SKIP}, and can be read: write the list again to use it",
    )
    leave_out(found)
    assert read_catalog(str(tmp_path), ["id"]).samples == 40


def test_a_list_that_is_out_of_date_is_a_problem_that_a_new_one_mends(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 40})
    break_group(tmp_path / "a.parquet", 1)
    leave_out(verify(str(tmp_path)))
    write(tmp_path, {"a.parquet": 60})
    break_group(tmp_path / "a.parquet", 3)
    found = verify(str(tmp_path))
    assert said(found) == [(SKIP, None), ("a.parquet", 3)]
    leave_out(found)
    assert verify(str(tmp_path)).good
    (tmp_path / SKIP).write_text("oops")
    found = verify(str(tmp_path))
    assert said(found) == [(SKIP, None), ("a.parquet", 3)]
    leave_out(found)
    assert read_catalog(str(tmp_path), ["id"]).samples == 50


def test_other_storage_than_a_disk(tmp_path: Path) -> None:
    write(tmp_path / "data", {"a.parquet": 40})
    break_group(tmp_path / "data" / "a.parquet", 1)
    inside = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    found = verify("data", filesystem=inside)
    assert said(found) == [("a.parquet", 1)]
    leave_out(found)
    assert read_catalog("data", ["id"], filesystem=inside).samples == 30


def test_what_cannot_even_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        verify(str(tmp_path / "none"))
    write(tmp_path, {"a.parquet": 20})
    with pytest.raises(DataError, match="no column 'ids'"):
        verify(str(tmp_path), ["ids"])
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    found = verify(str(tmp_path))
    assert said(found) == [("a.parquet", None)]
    assert found.row_groups == 0


def test_columns_for_transforms_may_hold_anything(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", {"a.parquet": 40})
    with pytest.raises(DataError, match="column 'text' is string"):
        verify(str(folder), ("text",))
    good = verify(str(folder), ("text",), raw=True)
    assert good.good
    assert (good.columns, good.samples) == (("text",), 40)
    break_group(folder / "a.parquet", 2, column=2)
    (problem,) = verify(str(folder), ("text",), raw=True).problems
    assert (problem.row_group, problem.rows, problem.skippable) == (2, GROUP, True)
