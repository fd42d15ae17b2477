"""Connecting to Ray: what is said when that does not work."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from shoal.errors import CapacityError
from shoal.launch.cluster import Local, connect

pytestmark = pytest.mark.unit


def test_a_cluster_that_does_not_come_up_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray gives its processes half a minute, and raises a plain Exception."""

    def init(**given: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with (
        pytest.raises(CapacityError, match=r"timed out during startup.*; where it is overloaded"),
        connect(Local(1, (), 64), None),
    ):
        pass
