"""Real data that needs no download: the standard library's source (text) and scikit-learn's digits (images).

Written once as Parquet under `<root>/data/<name>-<digest>` and used again from there.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.data.catalog import MANIFEST
from shoal.data.order import derive, permutation
from shoal.data.packing import BYTE_VOCABULARY, byte_tokens, pack
from shoal.data.shards import TOKENS, ShardWriter, published, write_manifest
from shoal.errors import ConfigError, DataError

DEFAULT_BLOCK = 256
HELD_OUT_EVERY = 20
"""Every 20th file of the standard library, in sorted order, is held out."""

_LEAST_BYTES = 5_000_000
_EXCLUDED = frozenset({"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "__pycache__"})
_DIGITS_HELD_OUT = 0.2
_DIGITS_SEED = 20
_SPLITS = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it came from. `domain` is its top-level package."""

    path: str
    domain: str
    text: str


def stdlib(root: Path, block: int | None = None, *, source: Path | None = None) -> Path:
    """The standard library's own source as packed blocks of bytes; returns the folder with `train` and `validation`.

    Column `tokens`: uint8 [block]. Beside it lie the documents (path, domain, text). `source` replaces the library's
    folder. Raises DataError if this Python came without its library's source.
    """
    block = block or DEFAULT_BLOCK
    splits = _split(_library(source or Path(sysconfig.get_paths()["stdlib"])))
    digest = hashlib.sha256()
    for documents in splits.values():
        for d in documents:
            digest.update(d.path.encode() + b"\0" + d.text.encode() + b"\0")
    name = f"stdlib-{digest.hexdigest()[:12]}"
    about = {"name": "builtin:stdlib", "python": platform.python_version(), "digest": digest.hexdigest()}
    documents_folder = root / "data" / name
    if not (documents_folder / MANIFEST).exists():
        _write_documents(documents_folder, splits, about)
    folder = root / "data" / f"{name}-b{block}"
    if not (folder / MANIFEST).exists():
        _write_blocks(folder, splits, block, about)
    return folder


def digits(root: Path) -> Path:
    """scikit-learn's 1,797 handwritten digits; returns the folder with `train` and `validation` (a fixed 20 %).

    Columns `image`: float32 [1, 8, 8] from 0 to 1, and `label`: int64.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("builtin:digits needs scikit-learn; install it with: pip install 'shoal[digits]'") from None
    bunch = load_digits()
    images = (bunch.images / 16.0).astype(np.float32)[:, None]
    labels = bunch.target.astype(np.int64)
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    folder = root / "data" / f"digits-{digest[:12]}"
    if (folder / MANIFEST).exists():
        return folder
    order = permutation(derive(_DIGITS_SEED), len(labels))
    held_out = int(len(labels) * _DIGITS_HELD_OUT)
    with published(folder) as temporary:
        found = {}
        for split, rows in zip(_SPLITS, (np.sort(order[held_out:]), np.sort(order[:held_out])), strict=True):
            writer = ShardWriter(temporary / split, {"classes": 10})
            writer.add({"image": images[rows], "label": labels[rows]})
            writer.close()
            found[split] = {"samples": writer.samples, "digest": writer.digest, "files": writer.files}
        write_manifest(temporary, {"name": "builtin:digits", "digest": digest, "splits": found})
    return folder


def _library(source: Path) -> list[Document]:
    documents = [
        Document(str(path), path.parts[0] if len(path.parts) > 1 else path.stem, _text((source / path).read_bytes()))
        for path in sorted(_sources(source))
    ]
    size = sum(len(d.text) for d in documents)
    if size < _LEAST_BYTES:
        raise DataError(
            f"builtin:stdlib: {source} holds only {size / 1e6:.1f} MB of Python source, less than "
            f"{_LEAST_BYTES / 1e6:.0f} MB: this Python came without its full library (Debian: apt install "
            f"libpython3-stdlib); use another Python, or your own text with `shoal data prepare`"
        )
    return documents


def _sources(source: Path) -> Iterator[Path]:
    for path in source.rglob("*.py"):
        relative = path.relative_to(source)
        if not _EXCLUDED.intersection(relative.parts):
            yield relative


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:  # a few old modules; Latin-1 reads any byte
        return raw.decode("latin-1")


def _split(documents: Sequence[Document]) -> dict[str, list[Document]]:
    held_out = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
    kept = [d for i, d in enumerate(documents) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    return dict(zip(_SPLITS, (kept, held_out), strict=True))


def _write_documents(folder: Path, splits: dict[str, list[Document]], about: dict[str, str]) -> None:
    with published(folder) as temporary:
        found = {}
        for split, documents in splits.items():
            (temporary / split).mkdir()
            table = pa.table({f: [getattr(d, f) for d in documents] for f in ("path", "domain", "text")})
            pq.write_table(table, temporary / split / "part-00000.parquet", compression="zstd", row_group_size=64)
            said = "".join(f"{d.path}\0{d.text}\0" for d in documents).encode()
            found[split] = {"samples": len(documents), "digest": hashlib.sha256(said).hexdigest()}
        write_manifest(temporary, {**about, "splits": found})


def _write_blocks(folder: Path, splits: dict[str, list[Document]], block: int, about: dict[str, str]) -> None:
    facts = {"block": block, "vocabulary": BYTE_VOCABULARY, "tokenizer": "bytes"}
    with published(folder) as temporary:
        found = {}
        for split, documents in splits.items():
            writer = ShardWriter(temporary / split, facts)
            stream = np.concatenate([byte_tokens(d.text.encode()) for d in documents])
            blocks, rest = pack(np.empty(0, np.uint8), stream, block)
            if not len(blocks):
                raise ConfigError(
                    f"data.block={block} is longer than the {split} split ({len(stream)} bytes); lower it"
                )
            writer.add({TOKENS: blocks}, text_bytes=blocks.size)  # a separator counts as a byte: the ratio is one
            writer.close()
            found[split] = {
                "samples": writer.samples,
                "digest": writer.digest,
                "files": writer.files,
                "documents": len(documents),
                "dropped_tokens": len(rest),
            }
        write_manifest(temporary, {**about, **facts, "bytes_per_token": 1.0, "splits": found})
