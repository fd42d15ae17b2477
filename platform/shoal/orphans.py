"""Workers and the feed outlive a coordinator that is being restarted; one that never comes back must not leave them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from shoal.ray_compat import actor_id

LOOK_EVERY_S = 5.0
PATIENCE = 3
"""Looks in a row that must find nobody: a look may fall into a moment in which the cluster's head is busy."""


def end_with(
    actor: str,
    namespace: str,
    *,
    also: Callable[[], PlacementGroup | None] = lambda: None,
    busy: Callable[[], bool] = lambda: False,
) -> None:
    """End this process, and give back its place and `also`, when the named actor is gone for good; while it is `busy`,
    it may come to its own end first. Returns at once."""
    threading.Thread(target=_watch, args=(actor, namespace, also, busy), name="shoal-orphans", daemon=True).start()


def _watch(actor: str, namespace: str, also: Callable[[], PlacementGroup | None], busy: Callable[[], bool]) -> None:
    missed, first = 0, _identity(actor, namespace)
    while missed < PATIENCE or busy():
        time.sleep(LOOK_EVERY_S)
        try:
            # Also finds one that is being restarted; another actor that took the name over has another identity.
            missed = 0 if _identity(actor, namespace) == first is not None else missed + 1
        except ray.exceptions.RayError:
            continue  # the cluster's head is being restarted: nobody can say
    for place in (also(), get_current_placement_group()):
        if place is not None:
            remove_placement_group(place)  # its own takes this process with it
    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)  # or Ray would start it again
    time.sleep(LOOK_EVERY_S)
    os._exit(0)


def _identity(actor: str, namespace: str) -> str | None:
    try:
        return actor_id(ray.get_actor(actor, namespace))
    except ValueError:
        return None
