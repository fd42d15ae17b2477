"""Whether other workers are reached: real sockets, and processes that are stopped, gone or silent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from shoal.worker.rendezvous import Rendezvous
from shoal.worker.sight import out_of_sight

pytestmark = pytest.mark.unit

SERVER = """
from shoal.worker.rendezvous import Rendezvous
print(Rendezvous("127.0.0.1", b"secret").address, flush=True)
input()
"""


def test_who_lives_is_seen_at_once_and_who_does_not_is_named() -> None:
    here = [Rendezvous("127.0.0.1", b"secret") for _ in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as closed:
        gone = closed.getsockname()[1]
        closed.close()
        where = {f"w{i}": one.address for i, one in enumerate(here)}
        begun = time.monotonic()
        assert out_of_sight(where) == ()
        assert time.monotonic() - begun < 1.0
        where |= {"silent": f"127.0.0.1:{silent.getsockname()[1]}", "gone": f"127.0.0.1:{gone}"}
        assert set(out_of_sight(where, within_s=0.3)) == {"silent", "gone"}
        # An address that is kept for documents: on no network does anybody answer there.
        assert out_of_sight({"far": "192.0.2.1:9"}, within_s=0.2) == ("far",)
    for one in here:
        one.close()


def test_a_stopped_process_is_not_seen_although_its_kernel_answers() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert child.stdout is not None
        where = {"w1": child.stdout.readline().strip()}
        assert out_of_sight(where, within_s=10.0) == ()
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert out_of_sight(where, within_s=0.3) == ("w1",)
        child.send_signal(signal.SIGCONT)
        assert out_of_sight(where, within_s=10.0) == ()
    finally:
        child.kill()
        child.communicate()
