"""Preparing a user's own text with Ray Data, end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from shoal.data import documents
from shoal.data.columns import to_numpy
from shoal.data.prepare import PrepareOptions, Progress, prepare
from shoal.data.sources import resolve
from shoal.errors import ConfigError, DataError
from shoal.job.spec import Data

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def cluster(no_cluster: None) -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for f in range(3):
        rows = [json.dumps({"text": f"file {f} document {i} " * 7, "n": i}) for i in range(400)]
        (folder / f"{f}.jsonl").write_text("\n".join(rows))
    return folder


def stream(folder: Path, split: str) -> bytes:
    return to_numpy("tokens", pq.read_table(folder / split)["tokens"]).tobytes()


def test_jsonl_becomes_blocks_in_order_whatever_the_units(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Progress] = []
    made = prepare([str(texts)], tmp_path / "one", PrepareOptions(block=64, held_out=0.1), progress=heard.append)
    assert heard[-1].units == heard[-1].total_units == 3
    assert heard[-1].bytes == heard[-1].total_bytes == sum(p.stat().st_size for p in texts.iterdir())
    monkeypatch.setattr(documents, "UNIT_BYTES", 10_000)
    again = prepare([str(texts)], tmp_path / "two", PrepareOptions(block=64, held_out=0.1), progress=heard.append)
    assert heard[-1].total_units > 10
    assert (again.digest, again.splits) == (made.digest, made.splits)

    train = made.splits["train"]
    assert train.documents + made.splits["validation"].documents == 1200
    assert train.tokens == train.samples * 64
    assert train.tokens + train.dropped_tokens == train.text_bytes + train.documents
    assert train.dropped_tokens < 64
    read = stream(made.folder, "train").split(b"\0")[:-1]
    numbers = [(int(t.split()[1]), int(t.split()[3])) for t in read]
    assert numbers == sorted(numbers), "documents keep their order"

    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["digest"] == made.digest
    assert manifest["splits"]["train"]["samples"] == train.samples
    sources = resolve(Data(train=str(made.folder)), tmp_path, ["tokens"])
    assert sources.train.digest == train.digest
    assert sources.train.metadata == {"block": 64, "vocabulary": 256, "tokenizer": "bytes", "bytes_per_token": 1.0}
    assert sources.validation is not None
    assert sources.validation.samples == made.splits["validation"].samples


def test_bad_rows_are_listed_with_file_and_line_and_nothing_is_written(texts: Path, tmp_path: Path) -> None:
    lines = (texts / "1.jsonl").read_text().split("\n")
    for n in (7, 100, 101, 102, 103, 104, 399):
        lines[n] = "{oops"
    (texts / "1.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        prepare([str(texts)], tmp_path / "out", PrepareOptions(block=64))
    said = str(caught.value)
    assert said.startswith("7 bad row(s) in the input, nothing was written")
    assert f"{texts / '1.jsonl'}:8: invalid JSON" in said
    assert "... and 2 more" in said
    assert "--on-bad skip" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]
    made = prepare([str(texts)], tmp_path / "out", PrepareOptions(block=64, on_bad="skip"))
    assert made.bad == 7
    assert len(made.bad_examples) == 5
    assert sum(s.documents for s in made.splits.values()) == 1193


def test_bad_rows_are_numbered_across_units(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "UNIT_BYTES", 5_000)
    with open(texts / "2.jsonl", "a") as file:
        file.write("\n[]\n")
    with pytest.raises(DataError, match=r"2\.jsonl:401: a JSON object was expected"):
        prepare([str(texts)], tmp_path / "out", PrepareOptions(block=64))


def test_a_tokenizer_file_gives_its_own_tokens(texts: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = ["<eos>", "?", "file", "document", *map(str, range(400))]
    made = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    options = PrepareOptions(block=32, tokenizer=str(tmp_path / "tokenizer.json"), held_out=0.0)
    done = prepare([str(texts / "0.jsonl")], tmp_path / "out", options)
    tokens = np.frombuffer(stream(done.folder, "train"), np.uint16)
    assert tokens[:5].tolist() == [2, 4, 3, 4, 2]
    assert tokens[28] == 0
    assert tokens.size == 400 * 29 // 32 * 32
    text = sum(len(f"file 0 document {i} " * 7) for i in range(400))
    assert done.bytes_per_token == pytest.approx(text / (400 * 29))
    catalog = resolve(Data(train=str(done.folder)), tmp_path).train
    assert catalog.metadata["bytes_per_token"] == pytest.approx(done.bytes_per_token, rel=1e-2)
    assert (catalog.metadata["vocabulary"], catalog.columns[0].dtype) == (404, "uint16")


def test_what_cannot_be_prepared(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        prepare([str(texts)], texts, PrepareOptions(block=64))
    with pytest.raises(ConfigError, match="name a local folder"):
        prepare([str(texts)], "s3://bucket/out", PrepareOptions(block=64))
    with pytest.raises(DataError, match="less than one block of 1000000"):
        prepare([str(texts)], tmp_path / "out", PrepareOptions(block=1_000_000))
    with pytest.raises(DataError, match="no such file"):
        prepare([str(texts / "x.txt")], tmp_path / "out", PrepareOptions(block=64))
    with pytest.raises(ConfigError, match="block=1 must be at least 2"):
        PrepareOptions(block=1)
    assert not (tmp_path / "out").exists()
