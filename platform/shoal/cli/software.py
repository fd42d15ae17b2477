"""Probes of the software: Python, packages, torch, DeepSpeed's operations, Ray."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

from shoal import __version__
from shoal.cli import text
from shoal.cli.checks import Check, ask_child

CORE = ("torch", "ray", "mlflow", "pyarrow", "numpy")
OPTIONAL = {"deepspeed": "zero", "transformers": "hf", "scikit-learn": "digits"}

_DEEPSPEED_OPS = """
import contextlib, json, logging, sys
with contextlib.redirect_stdout(sys.stderr):
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder.all_ops import ALL_OPS
    ops = {n: bool(b.is_compatible(verbose=False)) for n, b in ALL_OPS.items() if "not_implemented" not in n}
    device = get_accelerator().device_name()
print(json.dumps({"device": device, "ops": ops}))
"""

_RAY_CLUSTER = """
import json, logging, sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
except Exception as error:  # whatever it is, the parent shows it
    sys.exit(f"{type(error).__name__}: {str(error).splitlines()[0]}")
nodes = [n for n in ray.nodes() if n["Alive"]]
print(json.dumps({"address": ray.get_runtime_context().gcs_address, "nodes": len(nodes),
                  "total": ray.cluster_resources(), "free": ray.available_resources()}))
"""


def python() -> Iterator[Check]:
    """The interpreter."""
    from packaging.specifiers import SpecifierSet

    found = f"{sys.version.split()[0]} at {sys.executable}"
    try:
        needed = str(metadata.metadata("shoal")["Requires-Python"] or "")
    except (metadata.PackageNotFoundError, KeyError):
        needed = ""
    if SpecifierSet(needed).contains(sys.version.split()[0], prereleases=True):
        yield Check("python", "ok", found)
    else:
        yield Check(
            "python", "fails", found, f"Shoal needs Python {needed}; make a virtual environment with another one"
        )


def packages() -> Iterator[Check]:
    """Versions against the tested ranges, which are those of the installed package itself."""
    ranges = tested_ranges()
    if not ranges:
        yield Check(
            "shoal",
            "slow",
            f"{__version__}, not installed as a package, so the tested versions are unknown",
            "pip install shoal",
        )
    else:
        yield Check("shoal", "ok", __version__)
    for name in CORE:
        yield _package(name, ranges.get(name, ""), f"pip install '{name}{ranges.get(name, '')}'", needed=True)
    for name, extra in OPTIONAL.items():
        yield _package(name, ranges.get(name, ""), f"pip install 'shoal[{extra}]'", needed=False)


def tested_ranges() -> dict[str, str]:
    """name -> version range of what the installed Shoal asks for, extras included; empty if it is not installed."""
    from packaging.requirements import Requirement

    try:
        said = metadata.requires("shoal") or []
    except metadata.PackageNotFoundError:
        return {}
    requirements = [Requirement(line) for line in said]
    return {r.name: str(r.specifier) for r in requirements if str(r.specifier)}


def _package(name: str, tested: str, remedy: str, *, needed: bool) -> Check:
    from packaging.specifiers import SpecifierSet

    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        if needed:
            return Check(name, "fails", "is not installed", remedy)
        return Check(name, "ok", "is not installed (optional)", remedy)
    if tested and not SpecifierSet(tested).contains(version, prereleases=True):
        return Check(name, "slow", f"{version}, outside the tested versions {tested}", remedy)
    return Check(name, "ok", version)


def devices() -> Iterator[Check]:
    """torch's build and the GPUs that it, and the driver, can see."""
    import torch

    physical = _driver_gpus()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            yield Check(f"gpu {i}", "ok", f"{device.name}, {text.size(device.total_memory)}")
        yield Check("torch's build", "ok", f"CUDA {torch.version.cuda}; use it with --set workers.gpus=1")
    elif physical:
        why = (
            "torch's build is for the CPU"
            if torch.version.cuda is None
            else f"CUDA {torch.version.cuda} does not start"
        )
        yield Check(
            "torch's build",
            "slow",
            f"{', '.join(physical)} here, but {why}",
            "install torch for your driver's CUDA: https://pytorch.org/get-started/locally/",
        )
    else:
        yield Check("torch's build", "ok", "CPU; no GPU on this machine")


def _driver_gpus() -> list[str]:
    """Names of the GPUs that NVIDIA's driver knows, whatever torch says."""
    try:
        import pynvml
    except ImportError:
        return ["an NVIDIA GPU"] if shutil.which("nvidia-smi") else []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)))
            for i in range(pynvml.nvmlDeviceGetCount())
        ]
    finally:
        pynvml.nvmlShutdown()


def collectives() -> Iterator[Check]:
    """gloo and NCCL; gloo is tried, because it fails where the host's name has no address."""
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        yield Check("gloo", "fails", "torch was built without it", "install torch from PyPI")
        return
    try:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()
    except RuntimeError as error:
        yield Check(
            "gloo",
            "fails",
            f"a group cannot be formed: {str(error).splitlines()[0]}",
            "make the host's name resolvable (/etc/hosts), or set GLOO_SOCKET_IFNAME to a network interface",
        )
    else:
        yield Check("gloo", "ok", "forms a group")
    if torch.cuda.is_available():
        if dist.is_nccl_available():
            yield Check("nccl", "ok", ".".join(map(str, torch.cuda.nccl.version())))
        else:
            yield Check(
                "nccl", "slow", "torch was built without it", "GPUs would talk through gloo; install torch from PyPI"
            )


def deepspeed_operations() -> Iterator[Check]:
    """Which of DeepSpeed's own operations could be compiled here."""
    try:
        metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    ninja = shutil.which("ninja") or shutil.which("ninja", path=os.path.dirname(sys.executable))
    lacking = [word for word, there in (("a C++ compiler", compiler), ("ninja", ninja)) if not there]
    if lacking:
        yield Check(
            "deepspeed ops",
            "slow",
            f"{' and '.join(lacking)} missing: none of its operations can be built",
            "only engine.name=zero is concerned; apt install g++, pip install ninja",
        )
        return
    said = ask_child(_DEEPSPEED_OPS, timeout_s=120)
    built = [name for name, compatible in said["ops"].items() if compatible]
    missing = [name for name, compatible in said["ops"].items() if not compatible]
    found = f"{said['device']}: can build {', '.join(built) or 'none'}"
    yield Check("deepspeed ops", "ok", found + (f"; not {', '.join(missing)}" if missing else ""))


def ray_cluster(address: str | None) -> Iterator[Check]:
    """The cluster that a run would join, or that one would be started."""
    wanted = address or os.environ.get("RAY_ADDRESS")
    if not wanted or wanted == "local":
        yield Check("cluster", "ok", "a local one is started for each run (--address auto joins a running one)")
        return
    from shoal.launch.cluster import reach

    source = "--address" if address else "RAY_ADDRESS"
    try:
        reach(wanted)
        said = ask_child(_RAY_CLUSTER, wanted, timeout_s=60)
    except (RuntimeError, OSError) as error:
        yield Check(
            "cluster",
            "fails",
            f"{source}={wanted}: {error}",
            f"start it (ray start --head), correct the address, or leave out {source} for a local one",
        )
        return
    total, free = said["total"], said["free"]
    parts = [f"{free.get(k, 0):g} of {total[k]:g} {k}s free" for k in ("CPU", "GPU") if total.get(k)]
    found = (
        f"{said['address']}: {said['nodes']} node{'s' if said['nodes'] != 1 else ''}, {', '.join(parts) or 'no CPUs'}"
    )
    if total.get("CPU", 0) < 2:
        yield Check(
            "cluster", "fails", found, "a worker and Ray Data need a CPU each; add nodes, or ray start --num-cpus"
        )
    elif free.get("CPU", 0) < 3:
        yield Check("cluster", "slow", found, "the default job wants 3 CPUs and would wait for them")
    else:
        yield Check("cluster", "ok", found)
