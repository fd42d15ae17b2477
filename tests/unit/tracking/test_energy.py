"""Energy meters: each source's arithmetic, on files and drivers as they really answer."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from shoal.tracking.energy import Meter, cpu_estimate, nvml, rapl, worker_meter

pytestmark = pytest.mark.unit


def zone(root: Path, place: str, name: str, microjoules: int, most: int = 1_000_000) -> Path:
    path = root / place
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_rapl_counts_packages_and_memory_once_and_through_wraps(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    memory = zone(tmp_path, "intel-rapl:0:2", "dram", 0)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    machine = zone(tmp_path, "intel-rapl:1", "psys", 0)
    found = rapl(0.5, tmp_path)
    assert found is not None
    source, joules = found
    assert (source, joules()) == ("rapl", 0.0)
    for counter, value in ((package, 400_000), (memory, 250_000), (cores, 999_000), (machine, 999_000)):
        counter.write_text(f"{value}\n")
    assert joules() == pytest.approx(0.5 * (0.5 + 0.25))  # 900 000 .. 1 000 000 .. 400 000
    package.write_text("600000\n")
    assert joules() == pytest.approx(0.5 * (0.7 + 0.25))


def test_no_counters_or_unreadable_ones_are_none(tmp_path: Path) -> None:
    assert rapl(1.0, tmp_path / "nowhere") is None
    zone(tmp_path, "intel-rapl:0", "package-0", 0).write_text("not a number")
    assert rapl(1.0, tmp_path) is None
    assert nvml(["GPU-00000000-0000-0000-0000-000000000000"], 1.0) is None


def test_the_estimate_is_processor_time_of_this_process() -> None:
    begun = time.process_time()
    (source, joules), (_, whole) = cpu_estimate(4.0, begun), cpu_estimate(4.0, 0.0)
    while time.process_time() - begun < 0.02:
        pass
    assert source == "cpu-estimate"
    assert joules() >= 0.02 * 4.0
    assert whole() - joules() == pytest.approx(4.0 * begun, abs=0.1)


def test_a_gpu_without_a_counter_is_said_to_be_missing() -> None:
    estimate = cpu_estimate(1.0, 0.0)
    assert worker_meter(estimate, cpus=1, gpus=1, devices=["GPU-0"]).source.startswith("gpu-unmetered+")
    assert worker_meter(estimate, cpus=1, gpus=0, devices=[]).source in ("cpu-estimate", "rapl")


def test_a_meter_adds_its_parts_and_never_falls() -> None:
    values = iter([1.0, 5.0, OSError("the driver is gone"), 3.0, 9.0])

    def shaky() -> float:
        value = next(values)
        if isinstance(value, Exception):
            raise value
        return value

    meter = Meter([("nvml", shaky), ("rapl", lambda: 10.0)])
    assert meter.source == "nvml+rapl"
    assert [meter.joules() for _ in range(5)] == [11.0, 15.0, 15.0, 15.0, 19.0]


def test_half_a_gpu_gets_half_of_its_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    # The driver's interface with numbers that are known; tests/gpu asks a real one.
    driver = ModuleType("pynvml")
    counters = {"GPU-a": 5_000_000, "GPU-b": 1_000_000}
    driver.nvmlInit = lambda: None  # type: ignore[attr-defined]
    driver.nvmlDeviceGetHandleByUUID = lambda name: name  # type: ignore[attr-defined]
    driver.nvmlDeviceGetTotalEnergyConsumption = counters.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    half, both = nvml(["GPU-a"], 0.5), nvml(["GPU-a", "GPU-b"], 2.0)
    assert half is not None
    assert both is not None
    counters["GPU-a"] += 3_000
    counters["GPU-b"] += 1_000
    assert (half[1](), both[1]()) == (1.5, 4.0)
