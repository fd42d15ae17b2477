"""What people can ask of a run while it goes: how it stands, who is there, how many may be."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import ray

from shoal.coordinator.crew import Hand
from shoal.coordinator.scene import Scene
from shoal.coordinator.status import MemberStatus, RunStatus, State
from shoal.errors import ConfigError
from shoal.membership.phases import Phase
from shoal.membership.view import MemberId

SHOWN = {
    Phase.STARTING: "starting",
    Phase.WAITING: "waiting",
    Phase.FORMING: "forming",
    Phase.RUNNING: "training",
    Phase.ENDING: "finishing",
    Phase.DECIDING: "re-forming",
    Phase.DONE: "finishing",
}
"""The phases, in the words that people see."""


def status(scene: Scene) -> RunStatus:
    """Where the run stands."""
    book, plan, running = scene.book, scene.plan, scene.running
    last, step_s, tokens = book.last, book.step_s, plan.job.task.tokens_per_sample
    done = book.committed
    speed = scene.course.positions.per_step(max(1, done)) / step_s if step_s else None
    phase = SHOWN[scene.phase]
    if scene.phase is Phase.ENDING and running is not None and running.changing:
        phase = "re-forming"
    return RunStatus(
        phase="stopping" if scene.stop else phase,
        step=done,
        total_steps=scene.course.expected or None,
        loss=last.loss if last else None,
        samples_per_s=speed,
        tokens_per_s=speed * tokens if speed and tokens else None,
        workers=running.view.size if running else 0,
        wanted=scene.high,
        eta_s=max(0, scene.course.expected - done) * step_s if step_s else None,
        evaluation=book.evaluation,
        message=scene.waiting,
        news=book.news_count,
    )


def members(scene: Scene) -> tuple[MemberStatus, ...]:
    """All workers: members in rank order, then the others."""
    running, ranks = scene.running, ranks_of(scene)
    hands = sorted(scene.crew.hands.values(), key=lambda h: (ranks.get(h.member, len(ranks)), h.readiness))
    if running is None:
        return tuple(_worker(scene, h, None) for h in hands)
    shards, speeds = running.view.divided(scene.plan.job.batch.virtual_shards), running.paces.speeds()
    slow, step_s = {s.member: s.factor for s in running.paces.stragglers()}, running.step_s
    found = []
    for hand in hands:
        status = _worker(scene, hand, ranks.get(hand.member))
        if status.rank is not None and hand.facts is not None:
            progress, speed = running.pulse.progress(hand.member), speeds.get(hand.member)
            status = replace(
                status,
                virtual_shards=len(shards[hand.member]),
                step=progress.step,
                doing=progress.doing,
                step_s=step_s,
                compute_s=1.0 / speed if speed else None,
                straggler=slow.get(hand.member),
            )
        found.append(status)
    return tuple(found)


def ranks_of(scene: Scene) -> dict[MemberId, int]:
    """Of the members of the view that runs."""
    return {m: r for r, m in enumerate(scene.running.view.members)} if scene.running else {}


def _worker(scene: Scene, hand: Hand, rank: int | None) -> MemberStatus:
    facts = hand.facts
    status = MemberStatus(member=hand.member, state=state_of(scene, hand, rank), rank=rank, since=hand.since)
    if facts is None:
        return status
    return replace(status, node=facts.node, address=facts.address, pid=facts.pid, device=facts.device)


def state_of(scene: Scene, hand: Hand, rank: int | None) -> State:
    """What a worker does; `rank`: in the view that runs."""
    if hand.facts is None:
        return "starting"
    if hand.leaving is not None:
        return "leaving"
    if rank is not None:
        return "member"
    return "spare" if scene.running is not None and scene.running.view.size >= scene.high else "ready"


def scale(scene: Scene, low: int, high: int) -> str:
    """Have between `low` and `high` workers from now on; says what will happen. Raises ConfigError."""
    most = scene.plan.job.batch.virtual_shards
    if not 1 <= low <= high <= most:
        raise ConfigError(
            f"cannot scale to {low}:{high}: need 1 <= min <= max <= batch.virtual_shards={most}, since a worker "
            f"without a virtual shard would idle"
        )
    scene.low, scene.high = low, high
    scene.book.write("scale", min=low, max=high)
    now = scene.running.view.size if scene.running else 0
    if now > high:
        return f"{now - high} of {now} workers leave at the next boundary"
    if now < high:
        return f"{high - now} more workers are asked for and join as they become ready; {now} go on meanwhile"
    return f"{now} workers are there already"


def end_worker(scene: Scene, member: str, how: Literal["kill", "leave"]) -> str:
    """End one worker, at once or at the next boundary; says what will happen. Raises ConfigError."""
    hand = scene.crew.hands.get(member)
    if hand is None:
        known = ", ".join(scene.crew.hands) or "none"
        raise ConfigError(f"there is no worker {member} in this run; there are: {known}")
    if how == "leave":
        hand.leaving = "asked to leave"
        return f"{member} leaves at the next boundary; another one is asked for in its place"
    scene.killed[member] = "killed on request"
    ray.kill(hand.actor, no_restart=True)
    return f"{member} was killed; the others go on without it, and another one is asked for in its place"
