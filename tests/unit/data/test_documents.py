"""Documents and tokens from users' files, without Ray: units agree on lines, bad rows are numbered."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoal.data import documents
from shoal.data.documents import Bad, Document, Rows, find_units, read_unit
from shoal.data.tokenize import BYTES, UnitTokens, load_tokenizer, tokenize_unit
from shoal.errors import ConfigError, DataError

pytestmark = pytest.mark.unit


def read(*inputs: Path | str, column: str = "text") -> list:
    return [item for unit in find_units([str(i) for i in inputs], column) for item in read_unit(unit, column)]


def texts(items: list) -> list[str]:
    return [i.text.decode() for i in items if isinstance(i, Document)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=30),
    st.integers(1, 70),
    st.booleans(),
)
def test_units_of_any_size_give_every_line_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], unit: int, end: bool
) -> None:
    monkeypatch.setattr(documents, "UNIT_BYTES", unit)
    monkeypatch.setattr(documents, "_LOOK", 5)
    monkeypatch.setattr(documents, "TEXT_DOCUMENT_BYTES", 16)
    raw = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines) + ("\n" if end and lines else "")
    for name in ("x.jsonl", "x.txt"):
        (tmp_path / name).write_bytes(raw.encode())
    if not raw:
        with pytest.raises(DataError, match="nothing to read"):
            read(tmp_path / "x.jsonl")
        return
    items = read(tmp_path / "x.jsonl")
    assert texts(items) == lines
    assert sum(i.count for i in items if isinstance(i, Rows)) == len(lines)
    assert "".join(texts(read(tmp_path / "x.txt"))) == raw


def test_kinds_of_files_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n\n{"text": "three", "n": 1}')
    pq.write_table(pa.table({"text": ["four", "five"]}), tmp_path / "c.parquet", row_group_size=1)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "e.md.gz").write_bytes(gzip.compress(b"six"))
    (tmp_path / "d" / "f.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "seven"}'))
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "empty.txt").touch()
    numbers = ["one", "two", "three", "four", "five", "six", "seven"]
    assert texts(read(tmp_path)) == numbers
    assert texts(read(tmp_path.as_uri())) == numbers
    assert texts(read(tmp_path / "d" / "*.gz", tmp_path / "a.txt")) == ["six", "one"]
    assert texts(read(tmp_path / "**" / "*.bz2")) == ["seven"]


def test_bad_rows_say_where_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        b'{"text": "ok"}',
        b"{oops",
        b"[1]",
        b'{"txt": "x"}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    bad = {i.row: i.reason for i in read(tmp_path / "x.jsonl") if isinstance(i, Bad)}
    assert list(bad) == [2, 3, 4, 5, 6, 7]
    for row, said in (
        (2, "invalid JSON"),
        (3, "not list"),
        (4, "no field 'text'"),
        (5, "int"),
        (6, "UTF-8"),
        (7, "surrogate"),
    ):
        assert said in bad[row]
    (tmp_path / "y.txt").write_bytes(b"fine\nalso\nb\xffd\n")
    assert [(i.row, i.reason[:9]) for i in read(tmp_path / "y.txt") if isinstance(i, Bad)] == [(3, "not UTF-8")]
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "z.parquet")
    assert [i for i in read(tmp_path / "z.parquet") if isinstance(i, Bad)] == [Bad(2, "the text is missing (null)")]


def test_inputs_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("x")
    pq.write_table(pa.table({"body": ["a"], "n": [1]}), tmp_path / "x.parquet")
    (tmp_path / "broken.parquet").write_text("nothing")
    (tmp_path / "torn.txt.gz").write_bytes(gzip.compress(b"x" * 1000)[:-12])
    for given_, said in (
        (tmp_path / "bok.txt", 'did you mean "book.txt"'),
        (tmp_path / "x.parquet", "no column 'text'; it has body, n"),
        (tmp_path / "broken.parquet", "broken.parquet cannot be read as Parquet"),
        (tmp_path / "torn.txt.gz", "torn.txt.gz cannot be read"),
        ("nope://x", "cannot open this address"),
    ):
        with pytest.raises(DataError, match=said):
            read(given_)
    with pytest.raises(DataError, match="column 'n' is int64, not string"):
        read(tmp_path / "x.parquet", column="n")


def test_the_same_text_lands_in_the_same_split(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"document {i % 500}"}) for i in range(1000)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    (unit,) = find_units([str(tmp_path / "x.jsonl")], "text")
    found = tokenize_unit(unit, BYTES, "text", 0.2)
    assert found.documents["train"] + found.documents["validation"] == 1000
    assert 130 < found.documents["validation"] < 270
    split = {s: found.tokens[s].tobytes().split(b"\0")[:-1] for s in ("train", "validation")}
    assert not set(split["train"]) & set(split["validation"])
    assert sum(found.text_bytes.values()) == sum(len(t) for s in split.values() for t in s)
    row = {k: v[0] for k, v in found.to_row().items()}
    back = UnitTokens.from_row(row, BYTES.dtype)
    assert (back.rows, back.documents) == (1000, found.documents)
    assert (back.tokens["train"] == found.tokens["train"]).all()


def test_a_tokenizer_file(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"a": 0, "b": 1, "<eos>": 2, "?": 3, "stop": 4}, unk_token="?"))
    made.pre_tokenizer = Whitespace()
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    tokenizer = load_tokenizer(str(path), None)
    assert (tokenizer.vocabulary, tokenizer.end, tokenizer.dtype) == (5, 2, np.dtype(np.uint8))
    assert [a.tolist() for a in tokenizer.encode([b"a b c", b"b"])] == [[0, 1, 3, 2, 1, 2], [4, 2]]
    assert load_tokenizer(str(path), "stop").end == 4
    assert tokenizer.name.startswith("tokenizer.json@")
    with pytest.raises(ConfigError, match="does not know nope"):
        load_tokenizer(str(path), "nope")
    with pytest.raises(ConfigError, match="only for a tokenizer file"):
        load_tokenizer(None, "x")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(str(tmp_path / "missing.json"), None)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="is no tokenizer file"):
        load_tokenizer(str(path), None)
