"""A Ray cluster as a watcher beside a node sees it: its nodes, who lives on them, and that one of them goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shoal.ray_compat import head_client


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A living node."""

    id: str
    """In hex."""
    address: str
    head: bool


class ClusterSeen:
    """A cluster as one who has not joined it sees it: no driver, no job, nothing of ours runs there.

    Every method raises ConnectionError if the head does not answer in time.
    """

    def __init__(self, address: str, *, answer_s: float = 5.0) -> None:
        """`address`: `host:port` of the head. Whoever is not sure that it takes connections looks first: the client
        would try for a minute."""
        self.address, self._answer_s = address, answer_s
        with _answers(address):
            self._head, self._state = head_client(address)

    def nodes(self) -> list[NodeSeen]:
        """The living ones."""
        with _answers(self.address):
            found = self._head.get_all_node_info(timeout=self._answer_s)
        alive = [(key, node) for key, node in found.items() if node.state == 0]  # GcsNodeInfo.ALIVE
        return [NodeSeen(key.hex(), node.node_manager_address, node.is_head_node) for key, node in alive]

    def drain(self, node: str, why: str, deadline: float) -> None:
        """Tell the cluster that `node` (its id, in hex) is taken at `deadline`, in Unix seconds: nothing new is placed
        there, and whoever asks learns of it. It is not Ray that ends the node then."""
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # the one that no node can refuse
        with _answers(self.address):
            taken, refusal = self._head.drain_node(node, reason, why, int(deadline * 1e3), timeout=self._answer_s)
        if not taken:
            raise ConnectionError(f"the cluster at {self.address} refuses to drain node {node}: {refusal}")

    def actors(self, node: str) -> list[tuple[str, str]]:
        """Of the living actors on `node`: (class, name)."""
        with _answers(self.address):
            found = self._state.actor_table(None, actor_state_name="ALIVE")
        return [(a["ActorClassName"], a["Name"]) for a in found.values() if a["Address"]["NodeID"] == node]


@contextmanager
def _answers(address: str) -> Iterator[None]:
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise ConnectionError(f"the Ray cluster at {address} does not answer: {error}") from None
