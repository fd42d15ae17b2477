"""What becomes of a notice: Ray's own drain of this node, with the notice's deadline. All else hears of it from Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import psutil

from shoal.errors import CapacityError, ConfigError
from shoal.launch.cluster import reach
from shoal.notices.cluster import ClusterSeen, NodeSeen
from shoal.notices.notice import Notice
from shoal.ray_compat import cluster_address

AHEAD_S = 1.0
"""A drain without a future end is refused; a notice may say that its time has come."""
RETRY_S = 1.0
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class ThisNode:
    """The Ray node of this machine, and the cluster that it belongs to."""

    cluster: ClusterSeen
    node: NodeSeen

    def drain(self, why: str, deadline: float) -> None:
        """Raises ConnectionError if the cluster's head does not take it."""
        self.cluster.drain(self.node.id, why, max(deadline, time.time() + AHEAD_S))

    def occupied(self) -> list[str]:
        """Names of Shoal's workers and coordinators that still live here. Raises ConnectionError."""
        if self.node.id not in [n.id for n in self.cluster.nodes()]:
            return []
        return [name for kind, name in self.cluster.actors(self.node.id) if is_training(kind, name)]


def this_node(address: str | None, node_id: str | None = None) -> ThisNode:
    """The Ray node that runs on this machine.

    Raises CapacityError if the cluster cannot be reached or has no node here, ConfigError if it has several.
    """
    found = cluster_address(address)
    if found is None:
        raise CapacityError(
            f"no Ray cluster is known on this machine ({address or 'no address was given'}); start Ray first, or name "
            f"the head with --address host:6379"
        )
    try:
        reach(found)
        cluster = ClusterSeen(found)
        nodes = cluster.nodes()
    except OSError as error:
        raise CapacityError(
            f"the Ray cluster at {found} does not answer ({error}); check the address, and that its head lives"
        ) from None
    return ThisNode(cluster, pick(nodes, node_id, local_addresses(), found))


def pick(nodes: Collection[NodeSeen], node_id: str | None, here: Collection[str], cluster: str) -> NodeSeen:
    """The node of that id; without one, the node whose address is among those of this machine, `here`."""
    if node_id is not None:
        named = [n for n in nodes if n.id == node_id]
        if not named:
            raise ConfigError(f"the cluster at {cluster} has no living node {node_id}; it has: {_listed(nodes)}")
        return named[0]
    mine = [n for n in nodes if n.address in here]
    if not mine:
        raise CapacityError(
            f"the cluster at {cluster} has no living node on this machine; it has: {_listed(nodes)}. Start Ray here "
            f"first, or name the node with --node-id"
        )
    if len(mine) > 1:
        raise ConfigError(f"several Ray nodes run on this machine; name one with --node-id: {_listed(mine)}")
    return mine[0]


def local_addresses() -> set[str]:
    """All addresses of this machine's interfaces."""
    return {a.address.partition("%")[0] for found in psutil.net_if_addrs().values() for a in found}


def is_training(kind: str, name: str) -> bool:
    """Whether an actor of class `kind` and that name is a worker of Shoal, or the coordinator of a run."""
    return kind == "Worker" or (kind == "Coordinator" and name.startswith("shoal-"))


def drain_for(notice: Notice, find: Callable[[], ThisNode], say: Callable[[str], None]) -> bool:
    """Drain the node that `find` finds; while that fails, again and again until the notice's time has come. Says
    whether it was done."""
    while True:
        try:
            this = find()
            this.drain(notice.what, notice.deadline)
        except (CapacityError, ConfigError, ConnectionError) as error:
            if time.time() + RETRY_S >= notice.deadline:
                say(f"{notice.what}: this node could not be drained: {error}")
                return False
            time.sleep(RETRY_S)
        else:
            left = max(0.0, notice.deadline - time.time())
            say(f"{notice.what}: node {this.node.id} at {this.node.address} is drained, it goes in {left:.0f}s")
            return True


def wait_until_left(this: ThisNode, deadline: float) -> list[str]:
    """Wait until nobody of Shoal is left on the node, but not beyond `deadline` (Unix seconds); who still is."""
    while True:
        try:
            here = this.occupied()
        except ConnectionError:
            here = ["(the cluster's head does not answer)"]
        if not here or time.time() >= deadline:
            return here
        time.sleep(LOOK_S)


def _listed(nodes: Collection[NodeSeen]) -> str:
    return ", ".join(f"{n.id} ({n.address}{', head' if n.head else ''})" for n in nodes) or "none"
