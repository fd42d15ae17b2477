"""Which workers reach each other: asked of them, because only they can say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from shoal.membership.view import MemberId
from shoal.worker.outfit import WorkerFacts
from shoal.worker.sight import LOOK_S

ANSWER_S = LOOK_S + 2.0
"""Who has not answered by then says nothing of the others; whether they reach it, they say."""
LOOKED_AT = 16
"""How many others one worker looks at. In a view of twice as many every pair is looked at; in a larger one it would be
too many connections at once, and what is not seen the first time is when the view breaks again."""


async def blind_spots(run: str, workers: Mapping[MemberId, tuple[Any, WorkerFacts]]) -> dict[MemberId, list[MemberId]]:
    """Of each of `workers` (in rank order, actor and facts): whom of the others it does not reach. Takes milliseconds
    where all reach all."""
    order = list(workers)
    facts = {m: f for m, (_, f) in workers.items()}
    after = {m: [*order[i + 1 :], *order[:i]][:LOOKED_AT] for i, m in enumerate(order)}
    looks = [out_of_sight(run, actor, [facts[o] for o in after[m]]) for m, (actor, _) in workers.items()]
    return dict(zip(order, await asyncio.gather(*looks), strict=True))


async def out_of_sight(run: str, actor: Any, others: Sequence[WorkerFacts]) -> list[MemberId]:
    """Whom of `others` the worker `actor` does not reach, as far as it says."""
    where = {f.member: f.rendezvous for f in others}
    try:
        return list(await asyncio.wait_for(actor.out_of_sight.remote(run, where), ANSWER_S)) if where else []
    except (asyncio.TimeoutError, ray.exceptions.RayError):
        return []


def some_of(workers: Sequence[WorkerFacts]) -> list[WorkerFacts]:
    """At most LOOKED_AT of them, from all over the row."""
    return list(workers[:: max(1, -(-len(workers) // LOOKED_AT))])
