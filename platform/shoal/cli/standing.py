"""How a run stands, and who takes part in it: as rows for people and as JSON. Pure."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shoal.cli import text
from shoal.coordinator.status import MemberStatus, RunStatus
from shoal.tracking.runs import RunSummary

COLUMNS = ("worker", "state", "rank", "where", "device", "pid", "shards", "step", "doing", "step time", "per shard", "")
RIGHT = frozenset({"rank", "pid", "shards", "step", "step time", "per shard"})
SPARED = ("device", "rank", "pid", "per shard", "doing", "shards")
"""Columns that are left out, in this order, where there is too little room."""
GAP = 2


def headline(run: RunSummary, status: RunStatus | None) -> list[str]:
    """The run in a line, or two if it waits for something. `status` is None when it does not go on."""
    if status is None:
        total = f"/{run.total_steps}" if run.total_steps else ""
        parts = [f"{run.run_id}: {run.status}", f"step {run.step}{total}"]
        parts += [f"loss {run.loss:.4g}"] if run.loss is not None else []
        parts += [f"best val/loss {run.best_val_loss:.4g}"] if run.best_val_loss is not None else []
        parts += [f"took {text.duration(run.duration_s)}"] if run.duration_s is not None else []
        return [" · ".join(parts)]
    parts = [f"{run.run_id}: {status.phase}", text.steps(status), text.numbers(status)]
    parts += [f"{text.duration(status.eta_s)} left"] if status.eta_s is not None and status.eta_s >= 1 else []
    return [" · ".join(parts)] + ([f"waits: {status.message}"] if status.message else [])


def rows(members: Sequence[MemberStatus], now: float) -> list[list[str]]:
    """One row per worker, cells as in COLUMNS. `now` in Unix seconds."""
    shared = Counter(address for address, _ in {(m.address, m.node) for m in members})
    return [_row(m, now, several_nodes=shared[m.address] > 1) for m in members]


def table(members: Sequence[MemberStatus], now: float, width: int = 1000) -> tuple[list[str], list[list[str]]]:
    """Names and rows of the columns that say something and have room in `width` characters."""
    found = rows(members, now)
    keep = [i for i, name in enumerate(COLUMNS) if i < 2 or any(row[i] for row in found)]
    spared = [COLUMNS.index(name) for name in SPARED]
    while spared and sum(max(len(r[i]) for r in [COLUMNS, *found]) + GAP for i in keep) - GAP > width:
        left_out = spared.pop(0)
        keep = [i for i in keep if i != left_out]
    return [COLUMNS[i] for i in keep], [[row[i] for i in keep] for row in found]


def members_of(view: dict[str, Any] | None) -> tuple[MemberStatus, ...]:
    """The members of a ledger's `view` entry: those who took part last."""
    said = (view or {}).get("members", ())
    return tuple(
        MemberStatus(
            member=str(m.get("id")), state="member", rank=rank, node=str(m.get("node") or ""),
            address=str(m.get("address") or ""), device=str(m.get("device") or ""),
        )
        for rank, m in enumerate(said)
    )  # fmt: skip


def as_json(run: RunSummary, status: RunStatus | None, members: Sequence[MemberStatus]) -> dict[str, Any]:
    """What machines read: the fields of RunSummary, RunStatus (where the run goes on) and MemberStatus."""
    live = {} if status is None else {f.name: getattr(status, f.name) for f in dataclasses.fields(status)}
    evaluation = {"evaluation": dict(status.evaluation)} if status else {}
    return {**dataclasses.asdict(run), **live, **evaluation, "members": [dataclasses.asdict(m) for m in members]}


def _row(member: MemberStatus, now: float, *, several_nodes: bool) -> list[str]:
    since = f" {text.age(now - member.since)}" if member.since and member.state != "member" else ""
    node = f" ({member.node[:6]})" if several_nodes and member.node else ""
    return [
        member.member,
        f"{member.state}{since}",
        _known(member.rank),
        f"{member.address or member.node[:12]}{node if member.address else ''}",
        member.device,
        _known(member.pid),
        _known(member.virtual_shards or None),
        _known(member.step),
        member.doing,
        _seconds(member.step_s),
        _seconds(member.compute_s),
        f"{member.straggler:.1f}x slower" if member.straggler else "",
    ]


def _known(value: object) -> str:
    return "" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}s"
