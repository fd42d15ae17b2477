"""Probes of the machine: processors, memory, disks, limits."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from shoal.cli import text
from shoal.cli.checks import Check

GiB = 1 << 30
MiB = 1 << 20

DEFAULT_CPUS = 2
"""Two workers with a core each; Ray Data needs little beside them."""
STORE_BYTES = 512 * MiB
"""Object store of a local cluster under the default job."""
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "fuse.gcsfuse", "efs")


def processors() -> Iterator[Check]:
    """Cores that this process may use, and the container's limit on them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cgroup_cpus()
    usable = min(cores, limit or cores)
    found = f"{cores} cores" + (f", {limit:g} allowed by the container" if limit and limit < cores else "")
    if usable < DEFAULT_CPUS:
        yield Check(
            "cpu", "slow", found, f"the default job's {DEFAULT_CPUS} workers would share them; --set workers.max=1"
        )
    else:
        yield Check("cpu", "ok", found)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        yield Check("load", "slow", f"{load:.1f} processes want {cores} cores", "other work slows training down")


def cgroup_cpus(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that the container may use; None: no limit. Control groups version 2, then 1."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of memory that the container may use; None: no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            said = (root / name).read_text().strip()
        except OSError:
            continue
        # Version 1 writes a number beyond any memory for "no limit".
        return int(said) if said.isdigit() and int(said) < 1 << 60 else None
    return None


def memory() -> Iterator[Check]:
    """Memory that is free for the run."""
    import psutil

    machine = psutil.virtual_memory()
    limit = cgroup_memory()
    total, free = min(machine.total, limit or machine.total), min(machine.available, limit or machine.available)
    found = f"{text.size(free)} of {text.size(total)} free" + (" (container's limit)" if limit else "")
    if free < 1.5 * GiB:
        yield Check("memory", "fails", found, "Ray, two workers and the record need about 2 GiB; free some")
    elif free < 3 * GiB:
        yield Check(
            "memory", "slow", found, "little room beside Ray and two workers; free some, or --set workers.max=1"
        )
    else:
        yield Check("memory", "ok", found)


def shared_memory(path: Path = Path("/dev/shm")) -> Iterator[Check]:
    """Where Ray keeps samples on their way to the workers."""
    if not path.is_dir():
        if sys.platform == "linux":
            yield Check(
                "shared memory", "slow", f"there is no {path}", "Ray keeps objects on disk without it; mount a tmpfs"
            )
        return
    usage = shutil.disk_usage(path)
    found = f"{path}: {text.size(usage.free)} of {text.size(usage.total)} free"
    if usage.free < STORE_BYTES:
        yield Check(
            "shared memory",
            "slow",
            found,
            f"Ray's object store ({text.size(STORE_BYTES)}) goes to disk then; give the "
            "container more: docker run --shm-size=2g",
        )
    else:
        yield Check("shared memory", "ok", found)


def disk(runs: Path) -> Iterator[Check]:
    """Room for runs and for Ray, and whether runs may be written."""
    place = existing(runs)
    yield _writable(runs, place)
    usage = shutil.disk_usage(place)
    found = f"{text.size(usage.free)} free for {runs}"
    if usage.free < 200 * MiB:
        yield Check(
            "disk", "fails", found, "data, checkpoints and record do not fit; free some, or use --runs elsewhere"
        )
    elif usage.free < 2 * GiB:
        yield Check(
            "disk", "slow", found, "checkpoints of a large model may not fit; free some, or use --runs elsewhere"
        )
    else:
        yield Check("disk", "ok", found)
    kind = file_system(place)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        yield Check(
            "record",
            "slow",
            f"{runs} lies on a network file system ({kind})",
            "SQLite's log is unsafe there; use --runs on a local disk, or --tracking-uri with an MLflow server",
        )
    temporary = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    part = shutil.disk_usage(existing(temporary))
    if part.used / part.total > 0.95:
        yield Check(
            "ray's disk",
            "slow",
            f"{temporary} is {part.used / part.total:.0%} full",
            "above 95 % Ray refuses to spill objects; free some, or set RAY_TMPDIR",
        )


def existing(path: Path) -> Path:
    """The nearest parent of `path` that exists, or itself."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def file_system(path: Path) -> str:
    """Kind of the file system that holds `path`, for example `ext4`; empty if unknown."""
    import psutil

    mounts = [m for m in psutil.disk_partitions(all=True) if path.is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else ""


def _writable(runs: Path, place: Path) -> Check:
    remedy = "give the right to write there, or use --runs elsewhere"
    if not place.is_dir():
        return Check("runs", "fails", f"{place} is no folder", "use --runs elsewhere")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"shoal")
    except OSError as error:
        return Check("runs", "fails", f"{runs} cannot be written: {error.strerror}", remedy)
    return Check("runs", "ok", f"{runs} can be written")


def open_files() -> Iterator[Check]:
    """The limit on open files, of which every Ray process holds many."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024 or (soft < 4096 and hard == soft):
        yield Check("open files", "slow", f"at most {soft}", "a larger cluster fails with it; ulimit -n 65536")
    else:
        yield Check("open files", "ok", f"at most {soft}" + (f" (up to {hard})" if hard > soft else ""))


def shadowed_platform(folder: Path | None = None) -> Iterator[Check]:
    """A folder `platform` with an `__init__.py` hides the standard library's module from torch, pytest and Ray."""
    source = Path(__file__).resolve().parents[2]
    for place in {(folder or Path.cwd()) / "platform" / "__init__.py", source / "__init__.py"}:
        if place.exists() and place.parent.name == "platform":
            yield Check(
                "platform",
                "fails",
                f"{place} exists",
                "it hides the standard library's module, and Ray's workers hang; remove that file",
            )
