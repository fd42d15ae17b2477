"""From the documents of one unit to tokens of its two splits. Runs in Ray Data's tasks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from shoal.data.documents import Bad, Document, Unit, read_unit
from shoal.data.packing import BYTE_VOCABULARY, SEPARATOR, byte_tokens, token_dtype
from shoal.errors import ConfigError

SPLITS = ("train", "validation")
BAD_SHOWN = 5
"""Bad rows of a unit that are described; all are counted."""

_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]", "<|im_end|>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """How text becomes tokens: bytes, or what a tokenizer file says. Travels to the tasks as a value."""

    name: str
    vocabulary: int
    end: int
    """Token that ends every document."""
    definition: str | None = None
    """Content of the tokenizer file; None: bytes."""

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.vocabulary)

    def encode(self, texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """All documents one after another, each with its end token: tokens [n], and how many each has [documents]."""
        if self.definition is None:
            each = [byte_tokens(text) for text in texts]
        else:
            encoded = _load(self.definition).encode_batch_fast([t.decode() for t in texts], add_special_tokens=False)
            each = [np.asarray([*e.ids, self.end], dtype=self.dtype) for e in encoded]
        return np.concatenate([np.empty(0, self.dtype), *each]), np.array([len(e) for e in each], np.int64)


BYTES = Tokenizer(name="bytes", vocabulary=BYTE_VOCABULARY, end=SEPARATOR)


def load_tokenizer(path: str | None, end_token: str | None) -> Tokenizer:
    """The tokenizer in the file `path` (as the library `tokenizers` writes it); None: bytes.

    `end_token` ends every document; by default the first of the usual names that the tokenizer knows. Raises
    ConfigError for a file that is none, a missing library, and an unknown end token.
    """
    if path is None:
        if end_token is not None:
            raise ConfigError(f"end_token={end_token!r} is only for a tokenizer file; bytes end documents with byte 0")
        return BYTES
    try:
        with open(path, encoding="utf-8") as file:
            definition = file.read()
        tokenizer = _load(definition)
    except ImportError:
        raise ConfigError("a tokenizer file needs the library tokenizers: pip install 'shoal[hf]'") from None
    except OSError as error:
        raise ConfigError(f"tokenizer={path} cannot be read ({error.strerror}); name a tokenizer.json") from None
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for a malformed file
        raise ConfigError(f"tokenizer={path} is no tokenizer file ({error}); name a tokenizer.json") from None
    names = [end_token] if end_token is not None else list(_END_TOKENS)
    end = next((i for name in names if (i := tokenizer.token_to_id(name)) is not None), None)
    if end is None:
        raise ConfigError(
            f"tokenizer={path} does not know {' or '.join(names)}; name the token that ends a document (end_token)"
        )
    digest = hashlib.sha256(definition.encode()).hexdigest()[:12]
    return Tokenizer(
        name=f"{os.path.basename(path)}@{digest}",
        vocabulary=tokenizer.get_vocab_size(with_added_tokens=True),
        end=end,
        definition=definition,
    )


@dataclass(slots=True)
class UnitTokens:
    """What became of one unit, all but the last three per split; `rows` numbers the next unit of the file."""

    tokens: dict[str, np.ndarray]
    """All documents, one after another."""
    lengths: dict[str, np.ndarray]
    """Tokens of each document."""
    documents: dict[str, int]
    text_bytes: dict[str, int]
    rows: int = 0
    bad: int = 0
    bad_shown: list[tuple[int, str]] = field(default_factory=list)

    def to_row(self) -> dict[str, list[Any]]:
        """As a batch of one row for Ray Data: bytes of tokens and lengths per split, and the rest as JSON."""
        facts = {k: getattr(self, k) for k in ("documents", "text_bytes", "rows", "bad", "bad_shown")}
        tokens = {split: [self.tokens[split].tobytes()] for split in SPLITS}
        lengths = {f"{split}_lengths": [self.lengths[split].tobytes()] for split in SPLITS}
        return {**tokens, **lengths, "facts": [json.dumps(facts)]}

    @classmethod
    def from_row(cls, row: dict[str, Any], dtype: np.dtype) -> UnitTokens:
        tokens = {split: np.frombuffer(row[split], dtype=dtype) for split in SPLITS}
        lengths = {split: np.frombuffer(row[f"{split}_lengths"], dtype=np.int64) for split in SPLITS}
        return cls(tokens=tokens, lengths=lengths, **json.loads(row["facts"]))


def tokenize_unit(unit: Unit, tokenizer: Tokenizer, text_column: str, held_out: float) -> UnitTokens:
    """Read, check, divide and tokenise one unit.

    A document is held out if the hash of its text says so: the same text always lands in the same split, wherever it
    stands. Raises DataError for an unreadable file; bad rows are counted, and the first few described.
    """
    texts: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    out = UnitTokens({}, {}, {}, {})
    for item in read_unit(unit, text_column):
        if isinstance(item, Document):
            if item.text:
                texts["validation" if _fraction(item.text) < held_out else "train"].append(item.text)
        elif isinstance(item, Bad):
            out.bad += 1
            if len(out.bad_shown) < BAD_SHOWN:
                out.bad_shown.append((item.row, item.reason))
        else:
            out.rows = item.count
    for split in SPLITS:
        out.tokens[split], out.lengths[split] = tokenizer.encode(texts[split])
    out.documents = {split: len(texts[split]) for split in SPLITS}
    out.text_bytes = {split: sum(map(len, texts[split])) for split in SPLITS}
    return out


def _fraction(text: bytes) -> float:
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") / 2.0**64


@lru_cache(maxsize=2)
def _load(definition: str) -> Any:
    from tokenizers import Tokenizer as Library

    return Library.from_str(definition)
