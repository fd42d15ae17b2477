"""Requests for places that are taken back while one looks at them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shoal.job import Workers
from shoal.worker import places
from shoal.worker.places import UNKNOWN, Places

pytestmark = pytest.mark.unit


class Group:
    """What of a placement group is looked at."""

    def __init__(self, answer: bool | str) -> None:
        self.answer = answer

    def wait(self, timeout: float) -> bool:
        if isinstance(self.answer, str):
            raise Exception(self.answer)
        return self.answer


def asked(monkeypatch: pytest.MonkeyPatch, *answers: bool | str) -> tuple[Places, list[Group]]:
    groups = [Group(answer) for answer in answers]
    waiting = iter(groups)
    monkeypatch.setattr(places, "placement_group", lambda *args, **options: next(waiting))
    found = Places("run-", Workers(min=1, max=8))
    found.ask(len(groups))
    return found, groups


def test_a_request_that_the_cluster_knows_no_more_is_dropped_and_the_others_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, groups = asked(monkeypatch, False, f"Placement group PlacementGroupID(64) {UNKNOWN}.", True)
    granted: list[Any] = asyncio.run(found.granted())
    assert granted == [groups[2]]
    assert len(found) == 1, "the one that waits; what is missing is asked for anew"


def test_what_else_goes_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = asked(monkeypatch, "the head does not answer")
    with pytest.raises(Exception, match="does not answer"):
        asyncio.run(found.granted())
