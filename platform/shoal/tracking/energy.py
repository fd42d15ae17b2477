"""How much energy a worker's process has used: a counter that only grows, read in microseconds.

Where the numbers come from, the best source first; `source` names it wherever they are shown:

    nvml          the energy counter of the worker's GPUs (nvmlDeviceGetTotalEnergyConsumption, Volta or later)
    rapl          the counters of the node's processors and their memory (/sys/class/powercap), of which the worker gets
                  its share of the node's cores; readable by root only on most systems (CVE-2020-8694)
    cpu-estimate  processor seconds of this process times watts per core

A worker with a GPU has two parts, for example `nvml+cpu-estimate`. A GPU that has no counter (a slice of one, some
virtual ones) is not guessed at: `gpu-unmetered+cpu-estimate` says that it is missing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")

Counter = Callable[[], float]
"""A worker's joules since its beginning; grows, or stays."""


class Meter:
    """The sum of some counters. May be read from several threads."""

    def __init__(self, parts: Sequence[tuple[str, Counter]]) -> None:
        """`parts`: (source, counter) of each. A counter that fails later stays where it was."""
        self.source = "+".join(source for source, _ in parts)
        self._counters = [counter for _, counter in parts]
        self._said = [0.0] * len(parts)
        self._lock = threading.Lock()

    def joules(self) -> float:
        """Since the worker's beginning."""
        with self._lock:
            for i, counter in enumerate(self._counters):
                try:
                    self._said[i] = max(self._said[i], counter())
                except Exception:  # noqa: BLE001 - a driver that goes away must not end the training; the next may work
                    continue
            return sum(self._said)


def worker_meter(estimate: tuple[str, Counter], *, cpus: float, gpus: float, devices: Sequence[str]) -> Meter:
    """The meter of a worker that reserves `cpus` and `gpus`, and sees the GPUs whose NVML names (`GPU-<uuid>`) are
    `devices`; `estimate` (`cpu_estimate`) counts where the processors cannot be read."""
    host = rapl(cpus / (os.cpu_count() or 1)) or estimate
    if not gpus:
        return Meter([host])
    card = nvml(devices, gpus) or ("gpu-unmetered", lambda: 0.0)
    return Meter([card, host])


def cpu_estimate(watts_per_core: float, begun: float) -> tuple[str, Counter]:
    """Processor seconds of all threads of this process beyond the first `begun`, times `watts_per_core`."""
    return "cpu-estimate", lambda: (time.process_time() - begun) * watts_per_core


def nvml(devices: Sequence[str], gpus: float) -> tuple[str, Counter] | None:
    """The counters of these GPUs, of which the worker reserves `gpus` (half a GPU gets half of its energy); None: there
    is no NVML, or one of them has no counter."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(device) for device in devices]
        begun = sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(h) for h in handles)
    except Exception:  # noqa: BLE001 - no package, no driver, no such device, no counter: all mean the same here
        return None
    if not handles:
        return None
    share = min(1.0, gpus / len(handles))
    return "nvml", lambda: share * (sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(h) for h in handles) - begun) / 1e3


def rapl(share: float, root: Path = POWERCAP) -> tuple[str, Counter] | None:
    """The counters of all processor packages, and of memory where it has its own, times `share`; None: there are none,
    or they may not be read."""
    try:
        zones = [_Zone(path) for path in _zones(root)]
    except (OSError, ValueError):
        return None
    return ("rapl", lambda: share * sum(zone.joules() for zone in zones)) if zones else None


class _Zone:
    """One RAPL counter, in microjoules, that begins anew at `max_energy_range_uj`."""

    def __init__(self, path: Path) -> None:
        self._path = path / "energy_uj"
        self._range = int((path / "max_energy_range_uj").read_text())
        self._last = self._read()
        self._total = 0

    def joules(self) -> float:
        now = self._read()
        # Wraps after a quarter of an hour or more at full power; a worker is read every few seconds, wherever it is.
        self._total += now - self._last if now >= self._last else now - self._last + self._range
        self._last = now
        return self._total / 1e6

    def _read(self) -> int:
        return int(self._path.read_text())


def _zones(root: Path) -> Iterable[Path]:
    """Packages (`intel-rapl:0`; AMD's have the same name) and their memory (`intel-rapl:0:2`, `dram`). Cores are part
    of their package; `psys` is the whole machine once more."""
    for path in sorted(root.glob("intel-rapl:*")):
        name = (path / "name").read_text().strip()
        if name.startswith("package") or name == "dram":
            yield path
