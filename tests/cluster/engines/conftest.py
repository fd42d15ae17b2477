from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.process_pool import ProcessPool


@pytest.fixture(scope="session")
def pool() -> Iterator[ProcessPool]:
    """Four processes for the whole session; each case forms its own groups in them."""
    pool = ProcessPool(4)
    yield pool
    pool.close()
