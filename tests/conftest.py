"""The order of the tiers: seconds first, and no unit test in a process that is connected to a cluster."""

from __future__ import annotations

import pytest

TIERS = ("unit", "cluster", "gpu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests before those that share one Ray cluster, which stays up between modules."""
    items.sort(key=lambda item: next((i for i, tier in enumerate(TIERS) if item.get_closest_marker(tier)), len(TIERS)))
