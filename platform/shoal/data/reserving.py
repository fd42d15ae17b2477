"""CPUs that are kept for reading, so that workers can never take them and reading never takes theirs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

from shoal.errors import CapacityError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

TIMEOUT_S = 120.0
"""Longest wait for the CPUs."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Bundles of `task_cpus` CPUs each, `cpus` together. `group` is None only where nothing is reserved."""

    cpus: float
    task_cpus: float
    group: PlacementGroup | None = None

    def give_back(self) -> None:
        """The CPUs are free again. Can be called twice."""
        from ray.util.placement_group import remove_placement_group

        if self.group is not None:
            remove_placement_group(self.group)


def reserve(cpus: float, *, node_id: str | None = None, timeout_s: float = TIMEOUT_S, name: str = "") -> Reservation:
    """Reserve `cpus` in a placement group, on `node_id` if that node is large enough.

    With a `name` the group outlives the process that asked for it, and `find` finds it again.
    Raises CapacityError if the cluster does not give the CPUs in time.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    count, each = _bundles(cpus)
    nodes = [n for n in ray.nodes() if n["Alive"]]
    here = next((n["Resources"].get("CPU", 0.0) for n in nodes if n["NodeID"] == node_id), 0.0)
    pinned = here >= count * each
    group = placement_group(
        [{"CPU": each}] * count,
        strategy="PACK",
        name=name,
        lifetime="detached" if name else None,
        bundle_label_selector=[{"ray.io/node-id": node_id}] * count if pinned and node_id else None,
    )
    if group.wait(timeout_s):
        return Reservation(count * each, each, group)
    remove_placement_group(group)
    total = sum(n["Resources"].get("CPU", 0.0) for n in nodes)
    free = ray.available_resources().get("CPU", 0.0)
    where = f"the node that holds the data has {here:g} CPUs" if pinned else f"the cluster has {total:g} CPUs"
    raise CapacityError(
        f"data.cpus={count * each:g} could not be reserved for reading within {timeout_s:g} s: {where}, and {free:g} "
        f"of the cluster's are free. Lower data.cpus (0.5 is enough for small data) or workers.max, end other jobs, "
        f"or add a node"
    )


def find(name: str, cpus: float) -> Reservation | None:
    """What an earlier process reserved under `name`, if it is still there."""
    from ray.util.placement_group import get_placement_group

    count, each = _bundles(cpus)
    try:
        return Reservation(count * each, each, get_placement_group(name))
    except ValueError:
        return None


def _bundles(cpus: float) -> tuple[int, float]:
    """How many, and CPUs in each."""
    count = ceil(cpus)
    return count, floor(cpus / count * 10_000) / 10_000  # Ray counts in ten-thousandths
