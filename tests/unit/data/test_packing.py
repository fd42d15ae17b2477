"""Documents into blocks: what is cut, what is padded, and who belongs to whom. All that prepare does but for Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data import packing, prepare
from shoal.data.columns import to_numpy
from shoal.data.documents import Unit
from shoal.data.packing import PADDING, BestFit, Blocks, Joined, Packer
from shoal.data.sources import resolve
from shoal.data.tokenize import Tokenizer, UnitTokens, tokenize_unit
from shoal.errors import ConfigError
from shoal.job.spec import Data

pytestmark = pytest.mark.unit

END = 9
INT32 = np.dtype(np.int32)
LENGTHS = st.lists(st.integers(1, 40), max_size=60)
BLOCK = st.integers(2, 12)


def documents(lengths: Sequence[int]) -> list[np.ndarray]:
    """Tokens that say which document and which place in it they are."""
    return [1000 * (d + 1) + np.arange(n, dtype=np.int32) for d, n in enumerate(lengths)]


def packed(packer: Packer, given_: Sequence[np.ndarray], cuts: Sequence[int] = ()) -> Blocks:
    """All blocks, with the documents handed over in parts that end at `cuts`."""
    bounds = sorted({0, len(given_), *(c % (len(given_) + 1) for c in cuts)})
    found = []
    for low, high in zip(bounds, bounds[1:] or [0], strict=False):
        part = given_[low:high]
        found.append(packer.add(np.concatenate([np.empty(0, np.int32), *part]), np.array([len(d) for d in part], int)))
    found.append(packer.close())
    segments = [s for _, s in found if s is not None]
    return np.concatenate([t for t, _ in found]), np.concatenate(segments) if segments else None


def pieces(blocks: Blocks) -> list[list[int]]:
    """The tokens of every segment of every block."""
    tokens, segments = blocks
    assert segments is not None
    return [
        row[numbers == n].tolist()
        for row, numbers in zip(tokens, segments, strict=True)
        for n in range(1, int(numbers.max(initial=0)) + 1)
    ]


@given(LENGTHS, BLOCK, st.lists(st.integers(0, 99), max_size=4))
def test_joined_documents_are_told_apart_wherever_they_are_cut(lengths: list[int], block: int, cuts: list[int]) -> None:
    keep = Joined(block, INT32, borders=True)
    tokens, segments = packed(keep, documents(lengths), cuts)
    plain, none = packed(Joined(block, INT32, borders=False), documents(lengths))
    assert none is None
    assert (tokens == plain).all(), "the tokens are those of `cross`"
    assert segments is not None
    for row, numbers in zip(tokens // 1000, segments, strict=True):
        assert numbers.tolist() == (1 + np.cumsum(np.diff(row, prepend=row[0]) != 0)).tolist()
    stream = np.concatenate([np.empty(0, np.int32), *documents(lengths)])
    assert keep.waiting == len(stream) % block
    parts = [set((np.flatnonzero(stream // 1000 == d + 1) // block).tolist()) for d in range(len(lengths))]
    assert keep.truncated == sum(len(p) > 1 for p in parts)


@given(LENGTHS, BLOCK, st.lists(st.integers(0, 99), max_size=4))
def test_best_fit_cuts_only_what_is_longer_than_a_block(lengths: list[int], block: int, cuts: list[int]) -> None:
    packer = BestFit(block, END, INT32)
    tokens, segments = packed(packer, documents(lengths), cuts)
    again = packed(BestFit(block, END, INT32), documents(lengths))
    assert segments is not None
    assert again[1] is not None
    assert (tokens == again[0]).all(), "however the documents were divided among calls"
    assert (segments == again[1]).all()
    whole = [d.tolist() for d in documents(lengths)]
    expected = [d[i : i + block] for d in whole for i in range(0, len(d), block)]
    assert sorted(pieces((tokens, segments))) == sorted(expected)
    assert packer.truncated == sum(n > block for n in lengths)
    assert packer.waiting == 0
    for row, numbers in zip(tokens, segments, strict=True):
        real = int((numbers != PADDING).sum())
        assert (np.diff(numbers[:real].astype(int)) >= 0).all()
        assert (numbers[real:] == PADDING).all(), "padding stands at the end"
        assert (row[real:] == END).all()


def test_the_block_with_the_least_room_is_taken() -> None:
    found = pieces(packed(BestFit(10, END, INT32), documents([6, 7, 3, 4, 5])))
    assert [[p[0] // 1000 for p in found][i : i + 2] for i in (0, 2)] == [[2, 3], [1, 4]]


def test_few_blocks_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "OPEN_BLOCKS", 16)
    packer = BestFit(10, END, INT32)
    out = 0
    for n in range(100):
        out += len(packer.add(np.full(6, n, np.int32), np.array([6]))[0])
        assert packer.waiting <= 16 * 6
    assert out == 100 - 16
    assert len(packer.close()[0]) == 16


def test_long_blocks_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "OPEN_TOKENS", 100 * 32)
    packer = BestFit(100, END, INT32)
    for n in range(40):
        packer.add(np.full(60, n, np.int32), np.array([60]))
    assert packer.waiting == 32 * 60


def test_little_is_padding_and_few_are_cut() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.5, 1.0, 20_000), 2, 4000).astype(int)
    tokens = np.zeros(lengths.sum(), np.int32)
    fit, joined = BestFit(513, END, INT32), Joined(513, INT32, borders=True)
    segments = np.concatenate([s for s in (fit.add(tokens, lengths)[1], fit.close()[1]) if s is not None])
    joined.add(tokens, lengths)
    assert (segments != PADDING).mean() > 0.99
    assert fit.truncated == (lengths > 513).sum() < 0.3 * joined.truncated


def test_segments_take_the_smallest_type() -> None:
    assert [packing.segment_dtype(b).name for b in (255, 256, 65535, 65536)] == ["uint8", "uint16", "uint16", "int32"]
    _, segments = packed(Joined(255, INT32, borders=True), documents([1] * 255))
    assert segments is not None
    assert segments.max() == 255


# Files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are read here, one after another."""

    def here(units: Sequence[Unit], options: prepare.PrepareOptions, tokenizer: Tokenizer) -> Iterator[UnitTokens]:
        for unit in units:
            row = tokenize_unit(unit, tokenizer, options.text_column, options.held_out).to_row()
            yield UnitTokens.from_row({k: v[0] for k, v in row.items()}, tokenizer.dtype)

    monkeypatch.setattr(prepare, "_ray", nullcontext)
    monkeypatch.setattr(prepare, "_tokenized", here)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    rows = [json.dumps({"text": f"{i} " * (1 + i * 7 % 30)}) for i in range(600)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows))
    return str(tmp_path / "in.jsonl")


def make(texts: str, name: str, **options: Any) -> prepare.Prepared:
    return prepare.prepare([texts], Path(texts).with_name(name), prepare.PrepareOptions(block=65, **options))


def read(made: prepare.Prepared, column: str, split: str = "train") -> np.ndarray:
    return to_numpy(column, pq.read_table(made.folder / split)[column])


@pytest.mark.usefixtures("no_ray")
def test_borders_are_a_second_column(texts: str) -> None:
    cross, keep = make(texts, "cross"), make(texts, "keep", borders="keep")
    assert (read(keep, "tokens") == read(cross, "tokens")).all()
    assert pq.read_schema(cross.folder / "train" / "part-00000.parquet").names == ["tokens"]
    tokens, segments = read(keep, "tokens"), read(keep, "segments")
    assert segments.dtype == np.uint8
    ended = np.cumsum(tokens == 0, axis=1)[:, :-1]
    assert (segments[:, 1:] == 1 + ended).all(), "a separator belongs to the document that it ends"
    assert keep.digest != cross.digest
    for made in (cross, keep):
        train = made.splits["train"]
        assert (train.packing_rate, train.samples * 65) == (1.0, train.tokens)
        assert 0 < train.truncated_documents < train.documents
    sources = resolve(Data(train=str(keep.folder)), Path(), ["tokens", "segments"])
    assert [(c.name, c.dtype, c.shape) for c in sources.train.columns] == [
        ("tokens", "uint8", (65,)), ("segments", "uint8", (65,)),
    ]  # fmt: skip
    assert sources.train.metadata["borders"] == "keep"


@pytest.mark.usefixtures("no_ray")
def test_whole_documents_and_what_is_said_about_them(texts: str) -> None:
    made = make(texts, "whole", borders="keep", whole=True, held_out=0.2)
    lines = [json.loads(line)["text"] for line in Path(texts).read_text().split("\n")]
    found: list[str] = []
    for split in ("train", "validation"):
        tokens, segments = read(made, "tokens", split), read(made, "segments", split)
        found += [bytes(p).decode() for p in pieces((tokens, segments))]
        said = made.splits[split]
        assert said.packing_rate == (segments != PADDING).mean() > 0.9
        assert said.tokens == (segments != PADDING).sum() == said.text_bytes + said.documents
        assert said.dropped_tokens == 0
    assert sum(s.truncated_documents for s in made.splits.values()) == sum(len(t) + 1 > 65 for t in lines)
    short = {f"{t}\0" for t in lines if len(t) < 65}
    assert sorted(f for f in found if f in short) == sorted(short), "each in one piece"
    assert sum(map(len, found)) == sum(len(t) + 1 for t in lines), "nothing is lost"
    manifest = json.loads((made.folder / "manifest.json").read_text())
    assert manifest["splits"]["train"]["packing_rate"] == made.splits["train"].packing_rate
    assert manifest["splits"]["train"]["truncated_documents"] == made.splits["train"].truncated_documents
    footer = json.loads(pq.read_metadata(made.folder / "train" / "part-00000.parquet").metadata[b"shoal"])
    assert footer["whole"] is True
    assert footer["padding"] == made.splits["train"].samples * 65 - footer["tokens"] > 0
    about = resolve(Data(train=str(made.folder)), Path(), ["tokens", "segments"]).train.metadata
    assert about["bytes_per_token"] == made.bytes_per_token == 1.0


@pytest.mark.usefixtures("no_ray")
def test_with_padding_a_token_still_stands_for_its_own_bytes(texts: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Library(WordLevel({w: i for i, w in enumerate(["<eos>", "?", *map(str, range(600))])}, unk_token="?"))
    made.pre_tokenizer = Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    done = make(texts, "whole", borders="keep", whole=True, tokenizer=str(tmp_path / "tokenizer.json"), held_out=0.0)
    lines = [json.loads(line)["text"] for line in Path(texts).read_text().split("\n")]
    right = sum(map(len, lines)) / sum(len(t.split()) + 1 for t in lines)
    assert done.splits["train"].packing_rate < 1
    assert done.bytes_per_token == pytest.approx(right)
    about = resolve(Data(train=str(done.folder)), Path(), ["tokens"]).train.metadata
    assert about["bytes_per_token"] == pytest.approx(right)


@pytest.mark.usefixtures("no_ray")
def test_units_do_not_matter(texts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.data import documents as units

    one = make(texts, "one", borders="keep", whole=True)
    monkeypatch.setattr(units, "UNIT_BYTES", 2000)
    many = make(texts, "many", borders="keep", whole=True)
    assert (many.digest, many.splits) == (one.digest, one.splits)


def test_padding_needs_segments() -> None:
    with pytest.raises(ConfigError, match=r"whole=True needs borders=keep"):
        prepare.PrepareOptions(block=8, whole=True)
    with pytest.raises(ConfigError, match=r"borders='kept' is not one of cross, keep; did you mean \"keep\""):
        prepare.PrepareOptions(block=8, borders="kept")  # type: ignore[arg-type]
