"""What is shown of a data set: from footers, few row groups, and as something that people can read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.data import corpora
from shoal.data.inspecting import inspect, splits, spread
from shoal.data.shards import ShardWriter, write_manifest
from shoal.data.showing import as_json, drawn, find_decoder, lines, picture
from shoal.errors import ConfigError, DataError
from tests.support.bad_parquet import break_group, write

pytestmark = pytest.mark.unit


def test_columns_and_samples_that_are_spread_over_the_data(tmp_path: Path) -> None:
    write(tmp_path, {"a.parquet": 45, "b.parquet": 30})
    found = inspect(str(tmp_path), ["id"], samples=4)
    assert [(c.name, c.dtype, c.shape, c.used) for c in found.columns] == [
        ("id", "int64", (), True), ("x", "float32", (2,), False), ("text", None, (), False),
    ]  # fmt: skip
    assert [int(s.values["id"]) for s in found.samples] == [s.index for s in found.samples] == [0, 18, 37, 56]
    places = [(Path(s.place.file).name, s.place.row_group, s.place.row) for s in found.samples]
    assert places == [("a.parquet", 0, 0), ("a.parquet", 1, 8), ("a.parquet", 3, 7), ("b.parquet", 1, 1)]
    assert found.catalog.file_bytes == tuple((tmp_path / f).stat().st_size for f in ("a.parquet", "b.parquet"))


def test_only_the_row_groups_of_the_samples_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"a.parquet": 400})
    reads: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i, **kw: reads.append(i) or real(self, i, **kw))
    assert len(inspect(str(tmp_path), samples=0).samples) == 0
    assert reads == []
    inspect(str(tmp_path), samples=2)
    assert reads == [0, 20]


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(0, 50))
def test_spread(total: int, count: int) -> None:
    found = spread(total, count)
    assert len(found) == min(count, total)
    assert found == sorted(set(found))
    assert all(0 <= i < total for i in found)
    assert not found or found[0] == 0


def test_a_name_may_stand_for_two_splits(tmp_path: Path) -> None:
    write(tmp_path / "plain", {"a.parquet": 20})
    assert splits(str(tmp_path / "plain"), tmp_path) == {"": str(tmp_path / "plain")}
    for split in ("train", "validation"):
        write(tmp_path / "own" / split, {"a.parquet": 20})
    assert list(splits(str(tmp_path / "own"), tmp_path)) == [""], "without a manifest it is one data set"
    write_manifest(tmp_path / "own", {"splits": {s: {"samples": 20, "digest": "d"} for s in ("train", "validation")}})
    both = {s: f"{tmp_path}/own/{s}" for s in ("train", "validation")}
    assert splits(str(tmp_path / "own"), tmp_path) == splits(f"{tmp_path}/own/", tmp_path) == both
    write_manifest(
        tmp_path / "own",
        {"splits": {"train": {"samples": 20, "digest": "d"}, "validation": {"samples": 0, "digest": "e"}}},
    )
    assert list(splits(str(tmp_path / "own"), tmp_path)) == ["train"]
    built_in = splits("builtin:digits", tmp_path)
    assert list(built_in) == ["train", "validation"]
    assert built_in["train"] == str(corpora.digits(tmp_path) / "train")


def test_a_damaged_sample_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.data.groups.time.sleep", lambda s: None)
    write(tmp_path, {"a.parquet": 40})
    break_group(tmp_path / "a.parquet", 2)
    with pytest.raises(DataError, match=r"a\.parquet: row group 2 cannot be read.*shoal data verify"):
        inspect(str(tmp_path), samples=4)


def test_what_prepared_data_says_of_itself(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "train", {"block": 4, "tokenizer": "bytes"})
    writer.add({"tokens": np.frombuffer(b"ab\n\0", np.uint8)[None]})
    writer.close()
    write_manifest(tmp_path, {"splits": {"train": {"samples": 1, "digest": writer.digest, "documents": 7}}})
    found = inspect(str(tmp_path / "train"))
    assert found.manifest is not None
    assert found.manifest["split"]["documents"] == 7
    decode = find_decoder(found.catalog.metadata, found.manifest, None)
    assert lines("tokens", found.samples[0].values["tokens"], decode) == [r'"ab\n\u0000"']
    assert lines("other", found.samples[0].values["tokens"], decode) == ["97 98 10 0  (from 0 to 98)"]


def test_tokens_are_decoded_with_their_own_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    from shoal.data.tokenize import load_tokenizer

    file = tmp_path / "tokenizer.json"
    Tokenizer(WordLevel({"<eos>": 0, "sail": 1, "on": 2}, unk_token="<eos>")).save(str(file))
    about = {"tokenizer": load_tokenizer(str(file), None).name}
    manifest = {"options": {"tokenizer": str(file)}}
    tokens = np.asarray([1, 2, 0], np.uint16)
    for decode in (find_decoder(about, manifest, None), find_decoder(about, None, str(file))):
        assert decode is not None
        assert decode(tokens) == "sail on <eos>"
    assert find_decoder(about, None, None) is None
    assert find_decoder(about, {"options": {"tokenizer": str(tmp_path / "gone")}}, None) is None
    assert find_decoder({}, manifest, None) is None
    other = tmp_path / "other.json"
    Tokenizer(WordLevel({"<eos>": 0}, unk_token="<eos>")).save(str(other))
    assert find_decoder(about, {"options": {"tokenizer": str(other)}}, None) is None, "changed since: not to be trusted"
    with pytest.raises(ConfigError, match=r"other\.json has the digest .*made with tokenizer\.json@"):
        find_decoder(about, manifest, str(other))
    with pytest.raises(ConfigError, match="cannot be read"):
        find_decoder(about, manifest, str(tmp_path / "gone"))


def test_numbers_and_pictures() -> None:
    assert lines("label", np.int64(7)) == ["7"]
    assert lines("x", np.arange(20)) == ["0 1 2 3 4 5 6 7 ...  (from 0 to 19)"]
    assert lines("x", np.empty((0,))) == ["nothing"]
    cross = np.zeros((1, 8, 8), np.float32)
    cross[0, 3] = cross[0, :, 3] = 1.0
    first, *drawing = lines("image", cross)
    assert first == "from 0.0 to 1.0"
    assert [len(line) for line in drawing] == [8, 8, 8, 16, 8, 8, 8, 8]
    assert drawing[3] == "@" * 16
    assert as_json("x", np.arange(3)) == [0, 1, 2]
    assert as_json("label", np.int64(7)) == 7
    assert as_json("x", np.arange(100)) == {"shape": [100], "min": 0, "max": 99, "mean": 49.5}
    assert as_json("tokens", np.frombuffer(b"ab", np.uint8), lambda t: t.tobytes().decode()) == {"text": "ab"}


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.sampled_from(["uint8", "float32", "bool", "int64", "float16"]),
)
def test_everything_can_be_shown(shape: list[int], dtype: str) -> None:
    value = (np.arange(np.prod(shape)) % 7).astype(dtype).reshape(shape)
    if dtype == "float32":
        value.reshape(-1)[0] = np.nan
    shown = lines("x", value)
    assert shown
    json.dumps(as_json("x", value))
    image = picture(value)
    if image is not None:
        assert len(drawn(image)) == len(shown) - 1
        assert all(len(line) <= 32 for line in drawn(image))
