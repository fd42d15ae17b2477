"""One Ray cluster, with warm workers, for all modules; those that need another one take it down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.shared_cluster import SHARED


@pytest.fixture(scope="session")
def _shared() -> Iterator[None]:
    yield
    SHARED.down()


@pytest.fixture(scope="module")
def ray_cluster(_shared: None) -> None:
    """Logical CPUs on this machine and a pool; runs started in the test join it, and take their workers from the pool
    unless they say `pool=None`."""
    SHARED.up()


@pytest.fixture(scope="module")
def no_cluster() -> None:
    """For tests that start a cluster of their own: this process is not connected to any."""
    SHARED.down()
