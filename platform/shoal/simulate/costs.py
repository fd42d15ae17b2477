"""What things cost: one frozen value, every number of it with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from shoal.errors import ConfigError

STATE_BYTES = 12
"""Of a parameter: the weight and two moments in fp32, as all engines keep them and as they travel (docs/engines.md)."""
WEIGHT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """Seconds, and bytes per second. None: it follows from the others."""

    utilisation: float = 0.4
    device_flops: float = 312e12
    shard_s: float | None = None
    at_once: float | None = None
    bandwidth: float = 6.25e9
    exchange: float = 0.5
    host_copy: float = 10e9
    storage: float = 1e9
    start_s: float = 60.0
    detect_s: float = 20.0
    regroup_s: float = 0.2
    regroup_per_worker_s: float = 0.006
    state_s: float | None = None
    resume_s: float = 0.3
    beside: float = 0.0
    rebuild_s: float = 25.0
    restart_s: float = 180.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            positive = field.name in _POSITIVE
            if value is not None and not (0 < value < float("inf") or (value == 0 and not positive)):
                raise ConfigError(
                    f"{field.name}={value:g} must be {'more than 0' if positive else '0 or more'} and finite; "
                    f"it is: {MEANING[field.name][0]}"
                )
        for name in ("utilisation", "exchange", "beside"):
            if getattr(self, name) > 1:
                raise ConfigError(f"{name}={getattr(self, name):g} is a share, so at most 1: {MEANING[name][0]}")


_POSITIVE = frozenset(
    {"utilisation", "device_flops", "shard_s", "at_once", "bandwidth", "exchange", "host_copy", "storage"}
)

MEANING: Mapping[str, tuple[str, str]] = {
    "utilisation": (
        "share of device_flops that a step reaches",
        "assumed; 0.36 to 0.41 by INTELLECT-1 (arXiv 2412.01152), 0.38 to 0.43 by Llama 3 (arXiv 2407.21783)",
    ),
    "device_flops": ("floating point operations per second of a worker", "NVIDIA A100, bf16, data sheet"),
    "shard_s": ("seconds of one virtual shard on one worker", "6 x parameters x tokens / (utilisation x device_flops)"),
    "at_once": (
        "workers that can compute at the same time",
        "all of them; fewer where several share processors, as in this project's own measurements",
    ),
    "bandwidth": (
        "bytes per second into one worker from others",
        "p4d.24xlarge: 400 Gbit/s among 8 GPUs, AWS",
    ),
    "exchange": (
        "share of the bandwidth that moving a sharded state reaches",
        "0.3 to 0.7: benchmarks/results/reshard.md",
    ),
    "host_copy": (
        "bytes per second from a device to its host's memory",
        "assumed; PCIe 4.0 x16 has 32e9 at most",
    ),
    "storage": ("bytes per second between one worker and the checkpoints", "assumed"),
    "start_s": ("from a node's being there until its workers are ready, beside the training", "assumed"),
    "detect_s": (
        "until a loss is known",
        "a node that vanishes without a word: docs/assumptions.md; of a killed process 0.02 to 0.07: "
        "benchmarks/results/recovery.md",
    ),
    "regroup_s": ("forming a view, whatever its size", "0.05 to 0.25: benchmarks/results/recovery.md"),
    "regroup_per_worker_s": (
        "forming a view, for each member",
        "0.006 for the coordinator's part on two busy cores: benchmarks/results/control_plane.md; 0.003 for a group "
        "of more than 10,000 GPUs: MegaScale (arXiv 2402.15627), section 3.5",
    ),
    "state_s": (
        "moving the state to its new places",
        "12 bytes per parameter (docs/engines.md), bandwidth and exchange",
    ),
    "resume_s": (
        "what the first step of a view takes longer than others",
        "0 to 0.3, with a newcomer up to 1.4: benchmarks/results/recovery.md",
    ),
    "beside": (
        "share of the time in which a snapshot is sent that is taken from the training",
        "0 with a core to spare, 1 without: docs/membership.md",
    ),
    "rebuild_s": (
        "restart in place: new processes for all workers on nodes that stay, until they load the checkpoint",
        "24 to 26 for Ray Train 2.60 with a tiny model on two busy cores; large models take longer",
    ),
    "restart_s": (
        "restart: a new job on all nodes, until its workers load the checkpoint",
        "about 3 minutes at a thousand cards: DLRover's report on training GLM-65B, docs/blogs",
    ),
}
"""What each is, and where its default comes from."""


def with_values(costs: Costs, settings: Sequence[str]) -> Costs:
    """`costs` with the values of `settings`, each NAME=VALUE. Raises ConfigError for one that cannot be."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, given, value = setting.partition("=")
        if not given or name not in MEANING:
            raise ConfigError(
                f"--cost {setting}: there is no cost {name!r}; costs are {', '.join(MEANING)} (see: shoal simulate "
                f"--costs)"
                if given
                else f"--cost {setting}: write NAME=VALUE, for example bandwidth=25e9"
            )
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"--cost {setting}: {value!r} is no number; {name} is: {MEANING[name][0]}") from None
    return replace(costs, **found)
