"""Packing, shards, the built-in corpora and what `data.train` may name."""

from __future__ import annotations

import json
import sysconfig
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data import corpora
from shoal.data.catalog import read_catalog
from shoal.data.columns import to_numpy
from shoal.data.packing import byte_tokens, pack, token_dtype
from shoal.data.shards import GROUP_ROWS, ShardWriter, published
from shoal.data.sources import resolve
from shoal.errors import ConfigError, DataError
from shoal.job.spec import Data

pytestmark = pytest.mark.unit


@given(st.lists(st.integers(0, 30)), st.integers(2, 9))
def test_packing_loses_only_the_last_partial_block(lengths: list[int], block: int) -> None:
    documents = [np.full(n, i, np.int32) for i, n in enumerate(lengths)]
    carried, blocks = np.empty(0, np.int32), []
    for document in documents:
        full, carried = pack(carried, document, block)
        assert full.shape[1] == block
        blocks.append(full)
    whole = np.concatenate([np.empty(0, np.int32), *documents])
    found = np.concatenate([np.empty((0, block), np.int32), *blocks])
    assert len(carried) == len(whole) % block
    assert (np.concatenate([found.ravel(), carried]) == whole).all()


def test_bytes_end_with_a_separator() -> None:
    assert byte_tokens("aé".encode()).tolist() == [97, 195, 169, 0]
    assert [token_dtype(v).name for v in (256, 257, 65536, 65537)] == ["uint8", "uint16", "uint16", "int32"]


def test_shards_have_small_row_groups_and_say_what_they_are(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, {"block": 4}, shard_bytes=4 * 2500)
    blocks = np.arange(4 * 6000, dtype=np.int64).astype(np.uint8).reshape(-1, 4)
    for part in np.array_split(blocks, 17):
        writer.add({"tokens": part}, text_bytes=2 * part.size)
    writer.close()
    assert writer.samples == 6000
    assert len(writer.files) == 2
    catalog = read_catalog(str(tmp_path), ["tokens"])
    assert [g.rows for g in catalog.groups] == [GROUP_ROWS] * 5 + [6000 - 5 * GROUP_ROWS]
    assert catalog.metadata == {"block": 4, "bytes_per_token": 2.0}
    assert (to_numpy("tokens", pq.read_table(tmp_path)["tokens"]) == blocks).all()


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), published(tmp_path / "out") as temporary:
        (temporary / "part").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with published(tmp_path / "out") as temporary, published(tmp_path / "out") as other:
        (temporary / "manifest.json").write_text("{}")
        (other / "manifest.json").write_text("{}")
        assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "the slower of two writers leaves nothing behind"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_the_standard_library_as_a_corpus(root: Path) -> None:
    sources = resolve(Data(train="builtin:stdlib", block=128), root, ["tokens"])
    assert sources.validation is not None
    assert sources.train.columns[0].shape == (128,)
    assert sources.train.metadata == {"block": 128, "vocabulary": 256, "tokenizer": "bytes", "bytes_per_token": 1.0}
    assert sources.train.samples * 128 > 5_000_000
    assert 0.02 < sources.validation.samples / sources.train.samples < 0.12
    blocks, documents = sorted((root / "data").iterdir(), key=lambda p: not p.name.endswith("-b128"))
    assert documents.name in blocks.name
    table = pq.read_table(documents / "train")
    assert table.column_names == ["path", "domain", "text"]
    rows = {r["path"]: r for r in table.to_pylist()}
    assert rows["asyncio/events.py"]["domain"] == "asyncio"
    assert rows["asyncio/events.py"]["text"] == Path(sysconfig.get_paths()["stdlib"], "asyncio/events.py").read_text()
    assert not [p for p in rows if "/test/" in p or "site-packages" in p or p.startswith("idlelib")]
    held_out = set(pq.read_table(documents / "validation")["path"].to_pylist())
    assert not held_out & set(rows)
    first = to_numpy("tokens", pq.read_table(blocks / "train")["tokens"])[:3].tobytes()
    assert first == table["text"][0].as_py().encode()[: 3 * 128]
    written = {p: p.stat().st_mtime_ns for p in root.rglob("*.parquet")}
    again = resolve(Data(train="builtin:stdlib", block=128), root, ["tokens"])
    assert again.train == sources.train
    assert written == {p: p.stat().st_mtime_ns for p in root.rglob("*.parquet")}, "written once"


def test_a_python_without_its_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "os.py").write_text("x = 1")
    with pytest.raises(DataError, match=r"holds only 0\.0 MB of Python source"):
        corpora.stdlib(tmp_path, source=tmp_path / "lib")


def test_digits_as_a_corpus(root: Path) -> None:
    sources = resolve(Data(train="builtin:digits"), root, ["image", "label"])
    assert sources.validation is not None
    assert (sources.train.samples, sources.validation.samples) == (1438, 359)
    assert [(c.dtype, c.shape) for c in sources.train.columns] == [("float32", (1, 8, 8)), ("int64", ())]
    table = pq.read_table(sources.train.uri)
    images = to_numpy("image", table["image"])
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert set(table["label"].to_pylist()) == set(range(10))
    assert resolve(Data(train="builtin:digits"), root).train == sources.train


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Data(train="builtin:stdlb"), 'did you mean "builtin:stdlib"'),
        (Data(train="builtin:digits", block=64), "makes no sense for builtin:digits"),
        (Data(train="builtin:stdlib", block=10_000_000), "longer than the validation split"),
    ],
)
def test_impossible_built_in_data(root: Path, data: Data, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve(data, root)


def test_own_data_with_a_held_out_part_and_a_wrong_block(tmp_path: Path) -> None:
    for split, n in (("train", 12), ("validation", 3)):
        writer = ShardWriter(tmp_path / "own" / split, {"block": 8})
        writer.add({"tokens": np.zeros((n, 8), np.uint8)})
        writer.close()
    manifest = {"splits": {"train": {"samples": 12, "digest": "d1"}, "validation": {"samples": 3, "digest": "d2"}}}
    (tmp_path / "own" / "manifest.json").write_text(json.dumps(manifest))
    sources = resolve(Data(train=str(tmp_path / "own")), tmp_path, ["tokens"])
    assert sources.validation is not None
    assert (sources.train.digest, sources.validation.digest) == ("d1", "d2")
    assert resolve(Data(train=str(tmp_path / "own" / "train")), tmp_path).validation is None
    with pytest.raises(ConfigError, match=r"data\.block=16 is only for built-in text.*its blocks have 8 tokens"):
        resolve(Data(train=str(tmp_path / "own"), block=16), tmp_path)
    other = ShardWriter(tmp_path / "other", {})
    other.add({"tokens": np.zeros((2, 4), np.uint8)})
    other.close()
    with pytest.raises(DataError, match=r"column 'tokens' is uint8 \[8\] in .* but uint8 \[4\] in"):
        resolve(Data(train=str(tmp_path / "own"), validation=str(tmp_path / "other")), tmp_path)
