"""Parquet files with known damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP = 10


def write(folder: Path, files: dict[str, int], **options: Any) -> Path:
    """Files of so many rows in row groups of GROUP: `id` counts through all files, `x` is [id, id + 0.5]."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, rows in files.items():
        ids = np.arange(first, first + rows)
        x = pa.FixedSizeListArray.from_arrays(pa.array(np.stack([ids, ids + 0.5], 1).ravel().astype(np.float32)), 2)
        table = pa.table({"id": ids, "x": x, "text": ["t"] * rows})
        pq.write_table(table, folder / name, row_group_size=GROUP, use_dictionary=False, **options)
        first += rows
    return folder


def break_group(file: Path, row_group: int, column: int = 0) -> None:
    """Wipe out the header of a page, so that the row group cannot be read; the footer stays."""
    at = pq.ParquetFile(file).metadata.row_group(row_group).column(column).data_page_offset
    patch(file, at, bytes([255] * 12))


def change_values(file: Path, row_group: int, column: int = 0) -> None:
    """Change the last values of a page, which remains readable (if nobody compares checksums or statistics)."""
    chunk = pq.ParquetFile(file).metadata.row_group(row_group).column(column)
    patch(file, chunk.data_page_offset + chunk.total_compressed_size - 4, bytes([90] * 4))


def patch(file: Path, at: int, content: bytes) -> None:
    """Overwrite bytes; the size stays."""
    with open(file, "r+b") as handle:
        handle.seek(at)
        handle.write(content)
