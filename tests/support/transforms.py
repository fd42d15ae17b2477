"""Transforms of raw columns, good and bad, and the data that they are for."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shoal.data.order import derive_each

LENGTH = 16
WORDS = ("shoal", "fish", "turn", "left", "and", "right", "without", "a", "word")

Columns = dict[str, np.ndarray]


def text_of(row: int) -> str:
    """The text in row `row` of `write_texts`; each is another one, of another length."""
    return " ".join([str(row), *(WORDS[(row * k) % len(WORDS)] for k in range(1, 2 + row % 5))])


def write_texts(folder: Path, rows: int, *, group: int = 20, first: int = 0) -> Path:
    """Two files of texts, with ragged lists, bytes, categories and numbers beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("a", range(first, first + rows // 2)), ("b", range(first + rows // 2, first + rows))):
        table = pa.table(
            {
                "id": pa.array(part, pa.int64()),
                "text": [text_of(i) for i in part],
                "blob": pa.array([text_of(i).encode() for i in part], pa.binary()),
                "ragged": pa.array([list(range(i % 4)) for i in part], pa.list_(pa.int16())),
                "kind": pa.array([WORDS[i % 3] for i in part]).dictionary_encode(),
                "pair": pa.FixedSizeListArray.from_arrays(pa.array([i / 2 for i in part for _ in "ab"]), 2),
            }
        )
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=group)
    return folder


def tokenise(columns: Columns, keys: np.ndarray) -> Columns:
    """Text -> the first LENGTH bytes; the rest of a short one is 0."""
    tokens = np.zeros((len(keys), LENGTH), np.int64)
    for row, text in zip(tokens, columns["text"], strict=True):
        content = text.encode()[:LENGTH]
        row[: len(content)] = np.frombuffer(content, np.uint8)
    return {"id": columns["id"], "tokens": tokens}


@dataclass(frozen=True)
class Hide:
    """Replace tokens by 255, each with this probability, as the sample's key says."""

    probability: float = 0.2

    def __call__(self, columns: Columns, keys: np.ndarray) -> Columns:
        drawn = derive_each(keys[:, None], np.arange(LENGTH)) / 2.0**64
        return {**columns, "inputs": np.where(drawn < self.probability, 255, columns["tokens"])}


@dataclass(frozen=True)
class Failing:
    """Raises in the row whose `id` is `at`."""

    at: int

    def __call__(self, columns: Columns, keys: np.ndarray) -> Columns:
        if self.at in columns["id"]:
            raise_it(columns)
        return columns


def raise_it(columns: Columns) -> Any:
    return columns["no such column"]


@dataclass(frozen=True)
class Wider:
    """Gives longer tokens from the row whose `id` is `at` on."""

    at: int

    def __call__(self, columns: Columns, keys: np.ndarray) -> Columns:
        wide = LENGTH + (1 if self.at in columns["id"] else 0)
        return {**columns, "tokens": np.zeros((len(keys), wide), np.int64)}


@functools.cache
def table() -> np.ndarray:
    """Weights of `project`."""
    return np.sin(np.arange(LENGTH * 8, dtype=np.float32)).reshape(LENGTH, 8)


def project(columns: Columns, keys: np.ndarray) -> Columns:
    """A product whose last bits may depend on how many rows it has."""
    return {"id": columns["id"], "x": columns["tokens"].astype(np.float32) @ table()}


def picture(columns: Columns, keys: np.ndarray) -> Columns:
    """The hidden tokens as an image of a digit, for tasks that want one."""
    image = np.tile(columns["inputs"].astype(np.float32) / 255, (1, 64 // LENGTH)).reshape(-1, 8, 8)
    return {"image": image, "label": columns["id"] % 10}
