"""SIGTERM to a process that is needed, and to one that is not; also while the main thread is in one long operation."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.unit

PROGRAM = """
import hashlib, sys, threading, time
from shoal.worker.termination import Termination
needed = sys.argv[1] == "needed"
t = Termination(lambda: needed)
def tell():
    while t.asked is None:
        time.sleep(0.01)
    print("asked", flush=True)
threading.Thread(target=tell, daemon=True).start()
print("ready", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)   # for minutes the main thread does not come back to Python
"""


def process(needed: str) -> subprocess.Popen[str]:
    found = subprocess.Popen([sys.executable, "-c", PROGRAM, needed], stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None
    assert found.stdout.readline() == "ready\n"
    return found


def test_one_that_is_needed_says_so_and_stays_until_the_second_signal() -> None:
    one = process("needed")
    begun = time.monotonic()
    one.send_signal(signal.SIGTERM)
    assert one.stdout is not None
    assert one.stdout.readline() == "asked\n"
    assert time.monotonic() - begun < 5
    assert one.poll() is None
    one.send_signal(signal.SIGTERM)
    assert one.wait(timeout=10) == 143


def test_one_that_nobody_needs_ends_at_once() -> None:
    one = process("idle")
    one.send_signal(signal.SIGTERM)
    assert one.wait(timeout=10) == 143
