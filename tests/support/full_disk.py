"""What must hold when the disk is full. `python -m tests.support.full_disk FOLDER` tries it on a small disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import CheckpointError
from shoal.state.reader import CheckpointReader
from shoal.state.store import CheckpointStore
from tests.support.states import full_state, save

LARGE = (("w", 20_000),)
"""A model whose shards do not fit."""


def check_full_disk(folder: Path, full: Any = None) -> None:
    """Fill `folder` (or see `full`, a filesystem on it, fail) and check what is said and what is left."""
    uri = save(folder, 10, full_state(1))
    with pytest.raises(CheckpointError, match=r"cannot write .*step-00000020/shard-00000.*the disk is full; free some"):
        save(folder, 20, full_state(2, LARGE), sizes=LARGE, filesystem=full)
    assert [info.step for info in CheckpointStore(folder).list()] == [10]
    CheckpointReader(uri).verify()
    save(folder, 30, full_state(3))  # the failed write has given its space back
    assert [info.step for info in CheckpointStore(folder).list()] == [10, 30]


if __name__ == "__main__":
    check_full_disk(Path(sys.argv[1]))
