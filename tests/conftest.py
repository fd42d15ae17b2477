"""For all tiers: their order, seconds first, and no unit test in a process that is connected to a cluster."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A machine that others use, too, may take its time for any one example.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

TIERS = ("unit", "cluster", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests before those that share one Ray cluster, which stays up between modules."""
    items.sort(key=lambda item: next((i for i, tier in enumerate(TIERS) if item.get_closest_marker(tier)), len(TIERS)))
