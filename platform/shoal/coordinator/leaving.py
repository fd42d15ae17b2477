"""Workers that are told to go by others than the run: their nodes are drained, their processes are to end."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import ray

from shoal.coordinator.crew import Hand
from shoal.coordinator.scene import Scene
from shoal.membership.decisions import left_s
from shoal.membership.view import MemberId
from shoal.ray_compat import draining_nodes

CLOCK_S = 2.0
"""Longest wait for a worker to say what time it is there; then the coordinator's clock has to do."""


def hear_leave(scene: Scene, member: MemberId, why: str | None) -> None:
    """A worker says that its process is about to end (None: it is not): it leaves at the next boundary."""
    hand = scene.crew.hands.get(member)
    if why is not None and hand is not None and not hand.reclaimed:
        hand.reclaimed, hand.leaving = True, why
        scene.book.say("info", f"worker {member} will leave: {why}")


async def look_for_notices(scene: Scene) -> None:
    """Workers on nodes that were told to go leave before they must."""
    nodes, hands = await asyncio.to_thread(draining_nodes), scene.crew.hands.values()
    told = [h for h in hands if h.node in nodes and not h.reclaimed] if nodes else []
    await asyncio.gather(*(_hear_notice(scene, hand, nodes[hand.node]) for hand in told))


async def _hear_notice(scene: Scene, hand: Hand, deadline: float) -> None:
    """`deadline`: Unix seconds, by the clock of whoever set it; 0: nobody said."""
    hand.reclaimed, clocks = True, [time.time()]
    if deadline:
        with suppress(asyncio.TimeoutError, ray.exceptions.RayError):
            clocks.append(await asyncio.wait_for(hand.actor.clock.remote(), CLOCK_S))
    hand.leaving = "its node is drained"
    hand.goes_at = time.monotonic() + left_s(deadline, *clocks) if deadline else 0.0
    left = f" in {hand.stays_s:.0f}s" if deadline else ""
    scene.book.say("info", f"worker {hand.member} will leave: its node goes{left}")
