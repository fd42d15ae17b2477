"""Places for workers in the cluster: a placement group for each, and a process on it.

Placement groups cannot be resized, so each worker has its own. Asking for groups, not for bare actors, is what Ray's
autoscaler understands. Actors and groups are detached: they outlive a coordinator that is being restarted.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from shoal.capacity.fits import Need, Node, missing
from shoal.job import Workers
from shoal.ray_compat import autoscaler_says, draining_nodes, free_amounts
from shoal.worker.actor import LINE, LINE_THREADS, Worker

LOOK_S = (0.05, 1.0)
"""Between two looks for places that were granted: at first, and at most."""
EAGER_S = 10.0
"""After something was asked for, how long to look as often as at first."""

UNKNOWN = "does not exist"
"""What Ray says of a group that was removed (a cluster test looks)."""


class Places:
    """Requests for places that the cluster has not granted yet."""

    def __init__(self, prefix: str, wanted: Workers) -> None:
        """`prefix` of the groups' names; `wanted`: what a worker takes."""
        self._prefix, self._need = prefix, need_of(wanted)
        self._number = 0
        self.granted_after_s = 0.0
        """How long the last one that was granted had been asked for."""
        self._asked: dict[PlacementGroup, float] = {}

    def __len__(self) -> int:
        """How many are asked for."""
        return len(self._asked)

    def older_than(self, seconds: float) -> int:
        """How many have been asked for so long ago."""
        now = time.monotonic()
        return sum(now - at > seconds for at in self._asked.values())

    def ask(self, count: int) -> None:
        """Ask for `count` places in all: for more, or take requests back."""
        while len(self._asked) < count:
            self._number += 1
            name = f"{self._prefix}place{self._number}"
            place = placement_group(
                [dict(self._need.amounts)],
                name=name,
                lifetime="detached",
                bundle_label_selector=[dict(self._need.labels)] if self._need.labels else None,
            )
            self._asked[place] = time.monotonic()
        while len(self._asked) > count:
            remove_placement_group(self._asked.popitem()[0])

    async def granted(self) -> list[PlacementGroup]:
        """Wait until the cluster has granted some."""
        pause = LOOK_S[0]
        while True:
            asked = list(self._asked)
            found, gone = await asyncio.to_thread(looked_at, asked) if asked else ([], [])
            for place in gone:
                self._asked.pop(place, None)  # whoever wants it asks anew
            granted = [p for p in found if p in self._asked]  # none that was taken back meanwhile
            for place in granted:
                self.granted_after_s = time.monotonic() - self._asked.pop(place)
            if granted:
                return granted
            await asyncio.sleep(pause)
            newest = max(self._asked.values(), default=0.0)
            eager = not self._asked or time.monotonic() - newest < EAGER_S
            pause = LOOK_S[0] if eager else min(2 * pause, LOOK_S[1])

    def drop_others(self, kept: set[str]) -> None:
        """After a restart: give back all places but `kept` (their ids, in hex)."""
        for number, place in placement_group_table().items():
            name = place["name"]
            if not name.startswith(f"{self._prefix}place"):
                continue
            self._number = max(self._number, int(name[len(self._prefix) + len("place") :]))
            if number not in kept and place["state"] != "REMOVED":
                remove_placement_group(get_placement_group(name))


def looked_at(asked: list[PlacementGroup]) -> tuple[list[PlacementGroup], list[PlacementGroup]]:
    """Which of the groups are granted, and which the cluster knows no more: taken back while one looks."""
    granted, gone = [], []
    for place in asked:
        try:
            if place.wait(0):
                granted.append(place)
        except Exception as error:  # Ray has no class of its own for it
            if UNKNOWN not in str(error):
                raise
            gone.append(place)
    return granted, gone


def start_worker(name: str, wanted: Workers, place: PlacementGroup, owner: str) -> Any:
    """A new worker process on `place`, living for the actor named `owner`; returns its handle at once."""
    return (
        ray.remote(concurrency_groups={LINE: LINE_THREADS})(Worker)  # type: ignore[call-overload]
        .options(
            name=name,
            namespace="shoal",
            lifetime="detached",
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            resources=dict(wanted.resources) or None,
            accelerator_type=wanted.accelerator_type,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(place, placement_group_capture_child_tasks=False),
        )
        .remote(owner)
    )


def end_worker(actor: Any, place: PlacementGroup | None) -> None:
    """End the process and give its place back."""
    ray.kill(actor, no_restart=True)
    if place is not None:
        remove_placement_group(place)


def named_actors(prefix: str) -> list[str]:
    """Names of the living actors of Shoal that begin so."""
    found = ray.util.list_named_actors(all_namespaces=True)
    return sorted(a["name"] for a in found if a["namespace"] == "shoal" and a["name"].startswith(prefix))


def need_of(want: Workers) -> Need:
    """What one worker takes of the cluster."""
    amounts = {"CPU": want.cpus, "GPU": want.gpus, **dict(want.resources)}
    if want.accelerator_type is not None:
        amounts[f"accelerator_type:{want.accelerator_type}"] = 0.001  # as Ray itself asks for it
    return Need(tuple((name, amount) for name, amount in amounts.items() if amount), want.label_selector)


def nodes() -> list[Node]:
    """The nodes that workers could be on: those that live and were not told to go."""
    free, going = free_amounts(), draining_nodes()
    return [
        Node(n["NodeID"], n["Resources"], free.get(n["NodeID"], {}), n.get("Labels", {}))
        for n in ray.nodes()
        if n["Alive"] and n["NodeID"] not in going
    ]


def too_few(found: int, want: Workers, reading: float) -> str:
    """Why the cluster gave no more than `found` places; `reading`: CPUs that the run keeps for reading data."""
    need = need_of(want)
    why = missing(nodes(), need, want.min, found=found, reading=reading)
    said = autoscaler_says()
    return (
        f"only {found} of at least workers.min={want.min} workers found a place. Each needs {need}; {why.reason}"
        f"{f'. The autoscaler {said}' if said else ''}. To go on: {why.remedy}; if nodes are still being added, raise "
        f"workers.start_s={want.start_s:g}"
    )
