"""Whether other workers are reached: over real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from shoal.worker.rendezvous import Rendezvous
from shoal.worker.sight import LOOK_S, out_of_sight

pytestmark = pytest.mark.unit

NOWHERE = "192.0.2.1:9"
"""An address that is kept for documents: on no network does anybody answer there."""


@pytest.fixture
def others() -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        here = [Rendezvous("127.0.0.1", b"secret") for _ in range(3)]
        for one in here:
            stack.callback(one.close)
        yield {f"w{i}": one.address for i, one in enumerate(here)}


def test_who_is_there_is_seen_at_once(others: dict[str, str]) -> None:
    begun = time.monotonic()
    assert out_of_sight(others) == ()
    assert time.monotonic() - begun < LOOK_S
    assert out_of_sight({}) == ()


def test_who_is_not_there_is_named_and_the_others_are_not(others: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        gone = f"127.0.0.1:{server.getsockname()[1]}"
    assert out_of_sight({**others, "gone": gone, "far": NOWHERE}, within_s=1.0) == ("gone", "far")
