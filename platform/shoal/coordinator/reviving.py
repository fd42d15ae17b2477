"""A coordinator that Ray has restarted finds its run again: in the ledger, and in what the workers say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.coordinator.feeding import Feeding
from shoal.coordinator.running import Running, tally_of
from shoal.coordinator.scene import Scene
from shoal.coordinator.staging import Stage
from shoal.errors import WorkerLost
from shoal.membership.account import Account
from shoal.membership.commits import Tally
from shoal.membership.leasing import Due
from shoal.membership.messages import ViewEnd
from shoal.membership.phases import Phase
from shoal.membership.recovery import Formed
from shoal.membership.view import MemberId, View
from shoal.tracking.ledger import read
from shoal.worker.outfit import Standing


async def revive(scene: Scene, feeding: Feeding, stage: Stage) -> None:
    """Take over workers, feed and the view that runs; what the members have not seen committed they say again.

    Nobody waits meanwhile but for leases, of which there is about a second's worth.
    """
    entries, _ = read(scene.book.path)
    known, owed = _remember(scene, entries)
    scene.set_out(entries, revived=True)
    scene.durable.look()
    if not feeding.adopt(scene.book.committed):
        await feeding.start(scene.book.committed)
    standings = await scene.crew.adopt()
    scene.durable.model = next((s.facts.model for s in standings.values() if s.facts), {})
    scene.words.update({m: s.ends[-1] for m, s in standings.items() if s.ends})
    members = known.get(scene.number, ())
    living = {m: s for m, s in standings.items() if s.order is not None and s.order.view.number == scene.number}
    scene.book.write("revived", members=list(standings), view=scene.number)
    scene.account = Account(scene.book.committed)
    if living and scene.formed:
        running = _adopt_view(scene, living)
        earlier = [
            tally_of(scene.plan, scene.leasing(f.view, f.source_step, due))
            for f, due in zip(scene.formed[:-1], owed, strict=False)
        ]
        _adopt_account(scene, [*earlier, running.tally], [e for s in standings.values() for e in s.ends])
        refs = {m: scene.crew.hands[m].actor.view_end.remote(scene.plan.key, running.number) for m in living}
        stage.adopt(refs, _lost(living, members))


def _adopt_account(scene: Scene, tallies: list[Tally], ends: list[ViewEnd]) -> None:
    """Steps may be done and safe by now that were not written down before the end of the earlier life."""
    book = scene.book
    scene.publish(scene.account.adopt(tallies, ends, evaluated=book.evaluated_steps, saved=book.saved_steps))


def _remember(scene: Scene, entries: list[dict[str, Any]]) -> tuple[Mapping[int, tuple[MemberId, ...]], list[Due]]:
    """What the ledger says; returns the members of each view by its number, and what each view owed to begin with."""
    known: dict[int, tuple[MemberId, ...]] = {}
    scene.formed = []
    owed: list[Due] = []
    for entry in entries:
        kind = entry["kind"]
        if kind == "start":
            scene.formed, known, owed = [], {}, []  # another launch of the same run: none of its workers live any more
        elif kind == "view":
            members = tuple(m["id"] for m in entry["members"])
            cuts = tuple(entry["cuts"]) if entry.get("cuts") else None
            known[entry["number"]] = members
            scene.number = entry["number"]
            scene.formed.append(Formed(View(entry["number"], members, cuts), entry["first_step"] - 1))
            owed.append(Due("evaluate" in entry.get("owes", ()), "checkpoint" in entry.get("owes", ())))
        elif kind == "scale":
            scene.low, scene.high = entry["min"], entry["max"]
    scene.book.remember(entries)
    return known, owed


def _adopt_view(scene: Scene, living: Mapping[MemberId, Standing]) -> Running:
    order = next(iter(living.values())).order
    assert order is not None
    owes = Due(order.evaluate, order.checkpoint)
    told = {m: s.told for m, s in living.items()}
    for one in told.values():
        scene.course.restore(one.progress)
    leasing = scene.leasing(order.view, order.source.step, owes)
    running = Running(scene.plan, leasing, order.source, scene.paces, cold=False)
    running.leasing.resume_at(
        {m: max(t.until, order.source.step) for m, t in told.items()},
        snapshots={step for t in told.values() for step in t.snapshots},
        ends=[t.end for t in told.values() if t.end is not None],
    )
    scene.running = running
    scene.move(Phase.FORMING)
    return running


def _lost(living: Mapping[MemberId, Standing], members: tuple[MemberId, ...]) -> dict[MemberId, BaseException]:
    """Members of the view that died while nobody was there to notice."""
    return {m: WorkerLost(f"worker {m} was gone when the coordinator came back") for m in members if m not in living}
