"""Preparing a user's own text: files -> tokens -> packed blocks -> Parquet shards and a manifest.

Ray Data reads and tokenises units of the input in parallel and gives them back in order; this process packs and
writes, which costs little more than copying. The result depends on the input and the options alone.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shoal import ray_compat
from shoal.data.documents import Unit, find_units
from shoal.data.packing import BestFit, Blocks, Joined, Packer, real_tokens
from shoal.data.shards import SEGMENTS, TOKENS, ShardWriter, published, write_manifest
from shoal.data.tokenize import SPLITS, Tokenizer, UnitTokens, load_tokenizer, tokenize_unit
from shoal.errors import ConfigError, DataError, ShoalError
from shoal.job.checks import at_least, choice, fraction, positive

BAD_LISTED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """How text is turned into blocks. The result is a function of these and of the input."""

    block: int
    """Tokens in a block."""
    tokenizer: str | None = None
    """A tokenizer.json of the library `tokenizers`; None: bytes."""
    end_token: str | None = None
    """Token that ends every document; None: the tokenizer's own, by its usual names."""
    text_column: str = "text"
    """Field of JSON lines, column of Parquet."""
    held_out: float = 0.05
    """Fraction of the documents that is held out for validation, chosen by a hash of the text."""
    on_bad: Literal["stop", "skip"] = "stop"
    """What bad rows do: refuse the whole input (after counting them all), or be left out."""
    shard_mb: int = 64
    """Size of a shard before compression."""
    borders: Literal["cross", "keep"] = "cross"
    """Whether tokens see the documents before theirs in the block, or a column `segments` keeps them apart."""
    whole: bool = False
    """With `borders=keep`: documents that fit into a block are not cut, and blocks may hold padding."""

    def __post_init__(self) -> None:
        at_least("block", self.block, 2)
        fraction("held_out", self.held_out)
        choice("on_bad", self.on_bad, ("stop", "skip"))
        positive("shard_mb", self.shard_mb)
        choice("borders", self.borders, ("cross", "keep"))
        if self.whole and self.borders != "keep":
            raise ConfigError(
                "whole=True needs borders=keep (--borders keep): blocks are then padded, and it is the column segments "
                "that tells padding from text"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a preparation is."""

    units: int
    total_units: int
    bytes: int
    total_bytes: int
    samples: int
    """Blocks written, of both splits."""
    bad: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One half of what was prepared."""

    samples: int
    """Blocks."""
    documents: int
    tokens: int
    """In the blocks, without padding."""
    packing_rate: float
    """Part of the blocks' places that holds tokens; the rest is padding."""
    truncated_documents: int
    """Documents of which no single block holds the whole."""
    dropped_tokens: int
    """At the end, less than a block."""
    text_bytes: int
    """Of the documents."""
    digest: str
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a preparation made."""

    folder: Path
    block: int
    borders: str
    vocabulary: int
    bytes_per_token: float
    tokenizer: str
    digest: str
    splits: dict[str, Split]
    bad: int
    bad_examples: tuple[str, ...]
    seconds: float


def prepare(
    inputs: Sequence[str],
    output: str | Path,
    options: PrepareOptions,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Make packed blocks of the text in `inputs` and write them to the new folder `output`.

    `inputs`: text, JSON lines, Parquet, folders of them, local globs, URIs (see `documents.find_units`). The folder
    gets `train/` and `validation/` (column `tokens`: fixed-size lists of uint8, uint16 or int32; with `borders=keep`
    also `segments`) and `manifest.json`, and appears whole or not at all. Uses the Ray that is running, else a local
    one for as long as it takes. Raises ConfigError for options that cannot be, DataError for input that cannot be read
    or holds bad rows.
    """
    begun = time.monotonic()
    folder = _new_folder(output)
    tokenizer = load_tokenizer(options.tokenizer, options.end_token)
    units = find_units(inputs, options.text_column)
    with _ray(), _explained(folder), published(folder) as temporary:
        work = _Work(units, options, tokenizer, temporary)
        for n, unit in enumerate(_tokenized(units, options, tokenizer)):
            work.add(n, unit)
            if progress is not None:
                progress(work.progress(n + 1))
        values = work.finish(begun, folder)
        written = {k: v for k, v in asdict(values).items() if k not in ("folder", "seconds", "bad_examples")}
        write_manifest(temporary, {"name": folder.name, **written, "options": asdict(options)})
    return values


@dataclass(slots=True)
class _Half:
    """One split while it is being written."""

    writer: ShardWriter
    packer: Packer
    byte_level: bool
    """Whether a token is a byte."""
    documents: int = 0
    text_bytes: int = 0

    def add(self, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int) -> None:
        self._write(self.packer.add(tokens, lengths), text_bytes)
        self.documents += len(lengths)
        self.text_bytes += text_bytes

    def _write(self, blocks: Blocks, text_bytes: int) -> None:
        tokens, segments = blocks
        # With bytes, separators count as bytes of text, so that a token is exactly one byte.
        text = real_tokens(tokens, segments) if self.byte_level else text_bytes
        columns = {TOKENS: tokens} if segments is None else {TOKENS: tokens, SEGMENTS: segments}
        self.writer.add(columns, text_bytes=text)

    def close(self) -> Split:
        self._write(self.packer.close(), 0)
        self.writer.close()
        tokens = self.writer.tokens
        return Split(
            samples=self.writer.samples,
            documents=self.documents,
            tokens=tokens,
            packing_rate=tokens / (tokens + self.writer.padding) if tokens else 1.0,
            truncated_documents=self.packer.truncated,
            dropped_tokens=self.packer.waiting,
            text_bytes=self.text_bytes,
            digest=self.writer.digest,
            files=tuple(self.writer.files),
        )


@dataclass(slots=True)
class _Work:
    """Packs units in their order and writes both splits."""

    units: Sequence[Unit]
    options: PrepareOptions
    tokenizer: Tokenizer
    folder: Path
    halves: dict[str, _Half] = field(init=False)
    bytes: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)
    _rows: int = 0

    def __post_init__(self) -> None:
        options, tokenizer = self.options, self.tokenizer
        about = {"block": options.block, "vocabulary": tokenizer.vocabulary, "tokenizer": tokenizer.name}
        if options.borders == "keep":
            about |= {"borders": "keep", "whole": options.whole}
        self.halves = {
            split: _Half(
                ShardWriter(self.folder / split, about, shard_bytes=options.shard_mb << 20),
                _packer(options, tokenizer),
                byte_level=tokenizer.definition is None,
            )
            for split in SPLITS
        }

    def add(self, n: int, found: UnitTokens) -> None:
        unit = self.units[n]
        if n == 0 or self.units[n - 1].file != unit.file:
            self._rows = 0
        for row, reason in found.bad_shown[: BAD_LISTED - len(self.examples)]:
            self.examples.append(f"{unit.file}:{self._rows + row}: {reason}")
        self._rows += found.rows
        self.bad += found.bad
        self.bytes += unit.bytes
        if self.bad and self.options.on_bad == "stop":
            return  # what is still to come is only counted
        for split, half in self.halves.items():
            half.add(found.tokens[split], found.lengths[split], found.text_bytes[split])

    def progress(self, done: int) -> Progress:
        return Progress(
            units=done,
            total_units=len(self.units),
            bytes=self.bytes,
            total_bytes=sum(u.bytes for u in self.units),
            samples=sum(h.writer.samples for h in self.halves.values()),
            bad=self.bad,
        )

    def finish(self, begun: float, folder: Path) -> Prepared:
        if self.bad and self.options.on_bad == "stop":
            more = f"\n  ... and {self.bad - len(self.examples)} more" if self.bad > len(self.examples) else ""
            raise DataError(
                f"{self.bad} bad row(s) in the input, nothing was written:\n  "
                + "\n  ".join(self.examples)
                + f"{more}\nMend them, or leave such rows out with on_bad=skip (--on-bad skip)"
            )
        splits = {split: half.close() for split, half in self.halves.items()}
        train = splits["train"]
        if not train.samples:
            raise DataError(
                f"the input gives {train.dropped_tokens} training tokens from {train.documents} document(s), less than "
                f"one block of {self.options.block}; give more text, a smaller block or a smaller held_out"
            )
        digest = hashlib.sha256("".join(f"{k}:{v.digest}" for k, v in splits.items()).encode()).hexdigest()
        tokens = sum(s.tokens + s.dropped_tokens for s in splits.values())
        text = sum(s.text_bytes for s in splits.values())
        return Prepared(
            folder=folder,
            block=self.options.block,
            borders=self.options.borders,
            vocabulary=self.tokenizer.vocabulary,
            bytes_per_token=1.0 if self.tokenizer.definition is None else text / tokens,
            tokenizer=self.tokenizer.name,
            digest=digest,
            splits=splits,
            bad=self.bad,
            bad_examples=tuple(self.examples),
            seconds=time.monotonic() - begun,
        )


def _packer(options: PrepareOptions, tokenizer: Tokenizer) -> Packer:
    if options.whole:
        return BestFit(options.block, tokenizer.end, tokenizer.dtype)
    return Joined(options.block, tokenizer.dtype, borders=options.borders == "keep")


def _tokenized(units: Sequence[Unit], options: PrepareOptions, tokenizer: Tokenizer) -> Iterator[UnitTokens]:
    import ray

    text_column, held_out, dtype = options.text_column, options.held_out, tokenizer.dtype

    def convert(n: int) -> dict[str, list[Any]]:
        return tokenize_unit(units[n], tokenizer, text_column, held_out).to_row()

    try:
        with ray_compat.quiet_data():
            dataset = ray_compat.map_in_order(len(units), convert, node_id=_only_node(units))
            for block in ray_compat.blocks(dataset):
                for row in ray.get(block.ref).to_pylist():
                    yield UnitTokens.from_row(row, dtype)
    except ray.exceptions.RayError as error:
        cause = ray_compat.find_cause(error, ShoalError)
        if cause is None:
            raise
        raise cause from None


def _only_node(units: Sequence[Unit]) -> str | None:
    """This node, if the input lies on its disk and it has CPUs; None: any node."""
    import pyarrow.fs as pafs
    import ray

    here = ray.get_runtime_context().get_node_id()
    if not any(isinstance(u.filesystem, pafs.LocalFileSystem) for u in units):
        return None
    return next((here for n in ray.nodes() if n["NodeID"] == here and n["Resources"].get("CPU", 0) >= 1), None)


def _new_folder(output: str | Path) -> Path:
    if "://" in str(output):
        raise ConfigError(f"output={output}: blocks are written to a local disk; name a local folder and copy it after")
    folder = Path(output).expanduser().absolute()
    if folder.exists():
        raise ConfigError(f"output={folder} exists already; choose another folder, or remove it first")
    return folder


@contextmanager
def _ray() -> Iterator[None]:
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, ShoalError) or error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        raise DataError(
            f"output={folder} cannot be written ({error.strerror}); free some space or choose another place; nothing "
            f"was left behind"
        ) from None
