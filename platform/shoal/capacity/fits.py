"""What fits on which node; and, where too little does, what is missing and what would fit. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from shoal.labels import Selector, unmet

TINY = 1e-6
"""Ray counts in ten-thousandths, in floating-point numbers."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one worker takes of its node."""

    amounts: tuple[tuple[str, float], ...]
    """By Ray's names of resources."""
    labels: Selector = ()
    """Conditions for the node's labels."""

    def __str__(self) -> str:
        said = ", ".join(f"{name}: {amount:g}" for name, amount in self.amounts)
        wanted = ", ".join(f"{key}={condition}" for key, condition in self.labels)
        return f"{{{said}}}" + (f" on a node with {wanted}" if wanted else "")


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster."""

    id: str
    has: Mapping[str, float]
    """In all."""
    free: Mapping[str, float]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a cluster does not give enough."""

    reason: str
    remedy: str
    ever: bool
    """False: also when all others have gone, the nodes that there are do not suffice."""


def held(amounts: Mapping[str, float], need: Need) -> int:
    """How many of `need` these amounts are enough for; labels are not looked at."""
    found = [int((amounts.get(name, 0.0) + TINY) / amount) for name, amount in need.amounts if amount]
    return min(found, default=0)


def suits(node: Node, need: Need) -> bool:
    """Whether the node has the labels that are wanted."""
    return not unmet(need.labels, node.labels)


def room(node: Node, need: Need, *, empty: bool) -> int:
    """How many of `need` the node can hold beside what is there, or if it were `empty`."""
    return held(node.has if empty else node.free, need) if suits(node, need) else 0


def missing(nodes: Sequence[Node], need: Need, count: int, *, found: int = 0, reading: float = 0.0) -> Missing:
    """Why no more than `found` of `count` workers find a place. `reading`: CPUs that the run keeps for reading data.

    Nodes that an autoscaler may add later are not known here.
    """
    able = [node for node in nodes if room(node, need, empty=True)]
    total = sum(room(node, need, empty=True) for node in nodes)
    cpus = _largest("CPU", nodes, need, count)
    if not able:
        return Missing(f"no node could ever hold one: {_obstacle(nodes, need)}", _smaller(nodes, need, cpus), False)
    if total < count:
        return Missing(
            f"the nodes could hold {total} of them in all, if nothing else were there",
            _either(f"workers.min={total}", cpus),
            False,
        )
    most = min(count - found, sum(room(node, need, empty=False) for node in nodes))
    busy = ", ".join(
        f"{name} {_sum(nodes, name, free=False) - _sum(nodes, name, free=True):g} of {_sum(nodes, name, free=False):g}"
        for name, _ in need.amounts
    )
    kept = f" (with data.cpus={reading:g}, kept for reading)" if reading else ""
    return Missing(
        f"the nodes could hold {total} of them if they were empty, but have room for {most} more: in use are {busy}"
        f"{kept}",
        "wait for other runs to end, or give this one a higher workers.priority than theirs",
        True,
    )


def _obstacle(nodes: Sequence[Node], need: Need) -> str:
    """What keeps every node from holding one: labels first, since they leave out whole nodes."""
    if not nodes:
        return "there are no nodes"
    fitting = [node for node in nodes if suits(node, need)]
    if not fitting:
        return "; ".join(
            f"{key}={condition} is wanted, and the nodes have {_values(nodes, key)}" for key, condition in need.labels
        )
    short = [
        f"{name}: {amount:g} is wanted, and the most that a node has is {most:g}"
        for name, amount in need.amounts
        if (most := max(node.has.get(name, 0.0) for node in fitting)) + TINY < amount
    ]
    return "; ".join(short) or "no node has all of it together"


def _values(nodes: Iterable[Node], key: str) -> str:
    found = sorted({node.labels[key] for node in nodes if key in node.labels})
    return ", ".join(found) or "no such label"


def _largest(name: str, nodes: Sequence[Node], need: Need, count: int) -> float | None:
    """The largest smaller amount of resource `name` with which `count` of `need` would fit; None: there is none."""
    sizes = {floor(node.has.get(name, 0.0) / parts * 1e4) / 1e4 for node in nodes for parts in range(1, count + 1)}
    for size in sorted(sizes, reverse=True):
        less = replace(need, amounts=tuple((n, size if n == name else a) for n, a in need.amounts))
        if 0 < size < dict(need.amounts).get(name, 0.0) and sum(room(n, less, empty=True) for n in nodes) >= count:
            return size
    return None


def _smaller(nodes: Sequence[Node], need: Need, cpus: float | None) -> str:
    """What to change where no node can hold a single one."""
    if cpus is not None:
        return f"lower workers.cpus to {cpus:g}, or add larger nodes"
    if nodes and not any(suits(node, need) for node in nodes):
        return "correct workers.label_selector, or add nodes with these labels"
    return "ask for less (workers.cpus, workers.gpus, workers.resources, workers.accelerator_type), or add larger nodes"


def _either(first: str, cpus: float | None) -> str:
    return f"what would fit: {first}" + (f", or workers.cpus={cpus:g}" if cpus is not None else "") + "; or add nodes"


def _sum(nodes: Iterable[Node], name: str, *, free: bool) -> float:
    return sum((node.free if free else node.has).get(name, 0.0) for node in nodes)
