"""CPUs that are kept for reading, so that workers can never take them and reading never takes theirs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import TYPE_CHECKING

from shoal.capacity.fits import Need
from shoal.errors import CapacityError

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

NODE_LABEL = "ray.io/node-id"
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

    need, count = places_of(cpus, node_id)
    each = dict(need.amounts)["CPU"]
    group = placement_group(
        [dict(need.amounts)] * count,
        strategy="PACK",
        name=name,
        lifetime="detached" if name else None,
        bundle_label_selector=[dict(need.labels)] * count if need.labels else None,
    )
    if group.wait(timeout_s):
        return Reservation(count * each, each, group)
    remove_placement_group(group)
    nodes = [n for n in ray.nodes() if n["Alive"]]
    here = sum(n["Resources"].get("CPU", 0.0) for n in nodes if n["NodeID"] == node_id)
    total = sum(n["Resources"].get("CPU", 0.0) for n in nodes)
    free = ray.available_resources().get("CPU", 0.0)
    where = f"the node that holds the data has {here:g} CPUs" if need.labels else f"the cluster has {total:g} CPUs"
    raise CapacityError(
        f"data.cpus={count * each:g} could not be reserved for reading within {timeout_s:g} s: {where}, and {free:g} "
        f"of the cluster's are free. Lower data.cpus (0.5 is enough for small data) or workers.max, end other jobs, "
        f"or add a node"
    )


def places_of(cpus: float, node_id: str | None) -> tuple[Need, int]:
    """The places that `reserve` asks for: what each of them takes, and how many."""
    import ray

    count, each = _bundles(cpus)
    here = next((n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"] and n["NodeID"] == node_id), 0.0)
    pinned = node_id is not None and here >= count * each
    return Need((("CPU", each),), ((NODE_LABEL, str(node_id)),) if pinned else ()), count


def find(name: str, cpus: float) -> Reservation | None:
    """What an earlier process reserved under `name`, if it is still there. What was not granted, or was on a node that
    is gone, is given back."""
    from ray.util.placement_group import get_placement_group, remove_placement_group

    count, each = _bundles(cpus)
    try:
        group = get_placement_group(name)
    except ValueError:
        return None
    if group.wait(0):
        return Reservation(count * each, each, group)
    remove_placement_group(group)
    return None


def _bundles(cpus: float) -> tuple[int, float]:
    """How many, and CPUs in each."""
    count = ceil(cpus)
    return count, floor(cpus / count * 10_000) / 10_000  # Ray counts in ten-thousandths
