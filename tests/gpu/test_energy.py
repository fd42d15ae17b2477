"""The energy counter of a real GPU."""

from __future__ import annotations

import time

import pytest
import torch

from shoal.tracking.energy import cpu_estimate, nvml, worker_meter

pytestmark = pytest.mark.gpu


def test_work_on_the_gpu_shows_in_its_counter() -> None:
    devices = [f"GPU-{torch.cuda.get_device_properties(0).uuid}"]
    found = nvml(devices, 1.0)
    if found is None:
        # A slice of a GPU, or a virtual one: then the record must say that it is missing.
        meter = worker_meter(cpu_estimate(1.0, 0.0), cpus=1, gpus=1, devices=devices)
        assert meter.source.startswith("gpu-unmetered+")
        return
    source, joules = found
    a = torch.randn(8192, 8192, device="cuda")
    begun = time.monotonic()
    while time.monotonic() - begun < 2.0:
        a = torch.nn.functional.normalize(a @ a)
        torch.cuda.synchronize()
    watts = joules() / (time.monotonic() - begun)
    assert source == "nvml"
    assert 20.0 < watts < 2000.0
