"""Several hosts on this machine: a network namespace with an address, a raylet and a clock of its own for each.

Between them is real TCP, through a switch that can cut, delay and lose packets (`tests.support.switch`), so a host can
vanish as one whose power failed: nobody gets a reset or a refusal, there is only silence. Everything is taken down
again whatever happens: what runs in a namespace is ended by its number, and the namespaces go by their names.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
MEMORY = 100 << 20
HEAD_PORT = 6399
FAST = "SHOAL_TEST_CLOCK_FAST_S"
CLOCK = f"""import os, time
right, right_ns, fast = time.time, time.time_ns, float(os.environ.get("{FAST}", "0"))
def wrong(): return right() + fast
def wrong_ns(): return right_ns() + int(fast * 1e9)
for name, clock in (("time", wrong), ("time_ns", wrong_ns)):
    clock.__module__, clock.__name__, clock.__qualname__ = "time", name, name  # pickled by these
    setattr(time, name, clock)
"""
"""A `sitecustomize` by which every Python process of a host has another time of day. The raylet itself, which is C++,
keeps the right one. A clock that is wrong is so by a constant; durations stay right. The file is the same on all hosts,
because workers whose modules differ are refused."""
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""As in `cluster_configs/`: a host that is silent is dead for Ray after some seconds."""
STARTED = "Ray runtime started."
START_S = 120.0


def missing() -> str | None:
    """What this machine lacks for hosts of its own; None: nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` is missing (apt-get install iproute2)"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun is missing (modprobe tun)"
    name = f"shoal-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return f"network namespaces are not permitted: {tried.stderr.strip()}" if tried.returncode else None


class Hosts:
    """Hosts, numbered from 0; 0 has the cluster's head.

    `slots`: places for workers on each. `clocks`: host -> seconds by which its clock is fast.
    """

    def __init__(self, slots: Sequence[int], folder: Path, clocks: dict[int, float] | None = None) -> None:
        tag = f"{os.getpid()}-{secrets.token_hex(2)}"
        self.count, self._slots, self._folder, self._clocks = len(slots), slots, folder, clocks or {}
        self._names = [f"shoal-{tag}-{i}" for i in range(self.count)]
        self.addresses = [f"10.213.{os.getpid() % 250}.{i + 1}" for i in range(self.count)]
        self.token = secrets.token_hex(32)
        self._processes: list[subprocess.Popen[Any]] = []
        self._raylets: dict[int, subprocess.Popen[Any]] = {}
        self._switch: subprocess.Popen[str] | None = None
        self._cut: set[tuple[int, int]] = set()
        self._delay_s = self._loss = 0.0
        # Ray's sockets have paths, and these may not be long.
        self._temp = Path(tempfile.mkdtemp(prefix="sh", dir="/tmp"))

    # Up and down -----------------------------------------------------------------------------------------------------

    def up(self) -> None:
        """Start everything; returns when all hosts are in the cluster."""
        for name in self._names:
            subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
        line = [word for pair in zip(self._names, self.addresses, strict=True) for word in pair]
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "tests.support.switch", *line],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")
        self.start_ray(0)
        self.start_ray(*range(1, self.count))

    def down(self) -> None:
        """End every process in the namespaces, and the namespaces."""
        for host in range(self.count):
            self._kill_all(host)
        for process in self._processes:
            process.wait()
        if self._switch is not None:
            assert self._switch.stdin is not None
            self._switch.stdin.close()
            self._switch.wait()
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        shutil.rmtree(self._temp, ignore_errors=True)

    def start_ray(self, *hosts: int) -> None:
        """Start a raylet on each of `hosts`, the cluster's head on host 0; returns when all are in the cluster."""
        begun = {}
        for host in hosts:
            where = ["--head", f"--port={HEAD_PORT}", f"--temp-dir={self._temp}", "--include-dashboard=false"]
            if host:
                where = [f"--address={self.address}", f'--resources={{"slot":{self._slots[host]}}}']
            command = [
                *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats"),
                *(f"--num-cpus={self._slots[host] or 1}", f"--object-store-memory={MEMORY}"),
                *(f"--node-ip-address={self.addresses[host]}", *where),
            ]
            log = self._folder / f"ray-{host}.log"
            begun[host] = log, log.read_text().count(STARTED) if log.exists() else 0
            self._raylets[host] = self.spawn(host, command, output=log)
        for host, (log, before) in begun.items():
            raylet = self._raylets[host]
            until(
                lambda log=log, before=before, raylet=raylet: (
                    log.read_text().count(STARTED) > before or raylet.poll() is not None
                ),
                START_S,
                f"the raylet of host {host}",
            )
            assert raylet.poll() is None, f"the raylet of host {host} ended:\n{log.read_text()[-2000:]}"

    def has_ray(self, host: int) -> bool:
        """Whether a raylet is at work on `host`: one that was cut off for long ends itself."""
        raylet = self._raylets.get(host)
        return raylet is not None and raylet.poll() is None

    @property
    def address(self) -> str:
        """Of the cluster's head."""
        return f"{self.addresses[0]}:{HEAD_PORT}"

    # Processes -------------------------------------------------------------------------------------------------------

    def spawn(self, host: int, command: Sequence[str], *, output: Path, **more: str) -> subprocess.Popen[Any]:
        """Start a process on `host`, on its network and its clock; `more`: of its environment."""
        with output.open("ab") as out:
            process = subprocess.Popen(
                self._on(host, command),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment(host) | more,
            )
        self._processes.append(process)
        return process

    def run(self, host: int, command: Sequence[str], *, within: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command on `host`."""
        return subprocess.run(
            self._on(host, command),
            capture_output=True,
            text=True,
            timeout=within,
            env=self._environment(host),
        )

    def _on(self, host: int, command: Sequence[str]) -> list[str]:
        # `ip netns exec` gives the command mounts of its own: Ray's folder is another one on each host.
        (own := self._folder / f"disk-{host}").mkdir(exist_ok=True)
        mount = f'mount --bind {shlex.quote(str(own))} {self._temp} && exec "$@"'
        return ["ip", "netns", "exec", self._names[host], "sh", "-c", mount, "sh", *command]

    def pids(self, host: int) -> list[int]:
        """Everything that runs on `host`."""
        found = subprocess.run(["ip", "netns", "pids", self._names[host]], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def _environment(self, host: int) -> dict[str, str]:
        (clock := self._folder / "clock").mkdir(exist_ok=True)
        (clock / "sitecustomize.py").write_text(CLOCK)
        paths = [str(clock), os.getcwd(), str(Path.cwd() / "platform"), os.environ.get("PYTHONPATH", "")]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GLOO_"))}
        return kept | {
            "PYTHONPATH": os.pathsep.join(paths),
            FAST: str(self._clocks.get(host, 0.0)),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_ADDRESS": self.address,
            "RAY_worker_niceness": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_prestart_worker_first_driver": "0",
            **QUICK,
        }

    def _kill_all(self, host: int) -> None:
        deadline = time.monotonic() + 10
        while pids := self.pids(host):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"{pids} do not end"
            time.sleep(0.02)

    # The network -----------------------------------------------------------------------------------------------------

    def cut(self, *pairs: tuple[int, int]) -> None:
        """From now on the hosts of each pair hear nothing of each other."""
        self._cut.update(pairs)
        self._order()

    def isolate(self, host: int) -> None:
        """From now on nobody hears of `host`, nor it of anybody."""
        self.cut(*((host, other) for other in range(self.count) if other != host))

    def heal(self) -> None:
        """All hear each other again, at once."""
        self._cut, self._delay_s, self._loss = set(), 0.0, 0.0
        self._order()

    def hinder(self, *, delay_s: float, loss: float) -> None:
        """Every packet takes `delay_s` more, and of each hundred, 100 * `loss` are lost."""
        self._delay_s, self._loss = delay_s, loss
        self._order()

    def vanish(self, host: int) -> None:
        """As if its power had failed: silence first, then nothing is left that could say a word."""
        self.isolate(host)
        self._kill_all(host)
        self._raylets.pop(host).wait()

    def come_back(self, host: int) -> None:
        """A host that had vanished is there again, with nothing running on it but a new raylet."""
        self._cut = {pair for pair in self._cut if host not in pair}
        self._order()
        self.start_ray(host)

    def _order(self) -> None:
        assert self._switch is not None
        assert self._switch.stdin is not None
        order = {"cut": sorted(self._cut), "delay_s": self._delay_s, "loss": self._loss}
        self._switch.stdin.write(json.dumps(order) + "\n")
        self._switch.stdin.flush()
        self._expect("done")

    def _expect(self, word: str) -> None:
        assert self._switch is not None
        assert self._switch.stdout is not None
        assert self._switch.stdout.readline().strip() == word, "the switch does not answer"


@contextmanager
def hosts(slots: Sequence[int], folder: Path, clocks: dict[int, float] | None = None) -> Iterator[Hosts]:
    """Hosts for the length of a `with` block."""
    found = Hosts(slots, folder, clocks)
    try:
        found.up()
        yield found
    finally:
        found.down()


def until(condition: Callable[[], bool], within: float, what: str) -> None:
    """Wait for `condition`; fails if it does not come `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {within:g}s"
        time.sleep(0.05)
