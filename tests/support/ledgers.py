"""Ledgers like those of real runs, for tests of the record and for looking at its pages."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

Entry = dict[str, Any]


def start(time: float, run: str = "gpt-20261120-083112-a1b2") -> Entry:
    whole = {"samples": 81920, "positions": [[1, 64]], "total_steps": 400}
    return {"kind": "start", "time": time, "run": run, "job_digest": "5f2a91c07be3d4aa", **whole}


def view(time: float, number: int, size: int, first_step: int, reason: str) -> Entry:
    members = [{"id": f"w{i + 1}", "node": f"10.0.0.{4 + i}"} for i in range(size)]
    return {
        "kind": "view",
        "time": time,
        "number": number,
        "members": members,
        "first_step": first_step,
        "reason": reason,
    }


def commit(step: int, time: float, *, view: int = 1, workers: int = 2, total: int = 400, step_s: float = 0.2) -> Entry:
    """A commit whose loss falls like that of a byte-level language model. The same for the same step."""
    noise = random.Random(step)
    progress = step / total
    loss = 1.35 + 4.2 * math.exp(-step / (0.09 * total)) + 0.9 * math.exp(-step / (0.5 * total))
    lr = 1e-3 * min(1.0, progress / 0.05) * (0.55 + 0.45 * math.cos(math.pi * progress))
    compute, communicate = step_s * 0.72, step_s * (0.05 + 0.04 * workers)
    wobble = noise.uniform(0.93, 1.09)
    return {
        "kind": "commit",
        "time": round(time, 3),
        "step": step,
        "view": view,
        "samples": [(step - 1) * 64, step * 64],
        "epoch": step * 64 / 81920,
        "loss": loss * noise.uniform(0.965, 1.035),
        "lr": lr,
        "grad_norm": (0.6 + 3.5 * math.exp(-step / 25)) * noise.lognormvariate(0, 0.16),
        "workers": workers,
        "step_s": step_s * wobble,
        "data_wait_s": step_s * 0.015 * noise.lognormvariate(0, 0.5),
        "compute_s": compute * wobble,
        "communicate_s": communicate,
        "update_s": step_s * 0.06,
        "samples_per_s": 64 / (step_s * wobble),
        "tokens_per_s": 64 * 128 / (step_s * wobble),
    }


def cost(step: int, time: float, *, joules: float = 3000.0, priced: bool = True, tokens: bool = True) -> Entry:
    """The account after `step` steps: two thirds of it useful."""
    parts = {
        "train": 0.6,
        "evaluate": 0.05,
        "checkpoint": 0.05,
        "start": 0.1,
        "regroup": 0.1,
        "recompute": 0.05,
        "lost": 0.05,
    }
    money = {"dollars": {p: share * joules / 1500 for p, share in parts.items()}} if priced else {}
    return {
        "kind": "cost",
        "time": time,
        "step": step,
        "samples": step * 64,
        **({"tokens": step * 64 * 128} if tokens else {}),
        "seconds": {p: share * joules / 50 for p, share in parts.items()},
        "joules": {p: share * joules for p, share in parts.items()},
        **money,
        "co2_g": joules / 3.6e6 * 475,
        "carbon": "475 g/kWh (world average, IEA 2019)",
        "sources": ["nvml+cpu-estimate"],
        "prices": ["g5.xlarge us-east-1 spot $0.4886/h (2026-11-20)"] if priced else [],
        "workers": {},
    }


def departure(member: str, joined: float, left: float, *, lost: bool = False) -> Entry:
    """A worker that left."""
    phases = {"train": left - joined - 12, "start": 10.0, "lost" if lost else "regroup": 2.0}
    return {
        "kind": "worker",
        "time": left,
        "member": member,
        "lost": lost,
        "joined": joined,
        "left": left,
        "seconds": phases,
        "joules": {p: 50 * s for p, s in phases.items()},
        "dollars": {p: s * 0.4886 / 3600 for p, s in phases.items()},
        "source": "nvml+cpu-estimate",
        "price": "g5.xlarge us-east-1 spot $0.4886/h (2026-11-20)",
    }


def evaluation(step: int, time: float, total: int = 400) -> Entry:
    loss = 1.42 + 4.2 * math.exp(-step / (0.09 * total)) + 0.93 * math.exp(-step / (0.5 * total))
    metrics = {"val/loss": loss, "val/bits_per_byte": loss / math.log(2), "val/perplexity": math.exp(loss)}
    return {"kind": "evaluation", "time": time, "step": step, "metrics": metrics, "seconds": 0.8}


def checkpoint(step: int, time: float) -> Entry:
    uri = f"/data/runs/gpt/checkpoints/step-{step:08d}"
    return {"kind": "checkpoint", "time": time, "step": step, "uri": uri, "bytes": 10_523_648, "seconds": 0.41}


def change(time: float, view: int, what: str, members: list[str], step: int, workers: int, redone: int = 0) -> Entry:
    detect = {"detect_s": 0.12} if what in ("loss", "hang") else {"detect_s": 0.0}
    costs = {**detect, "regroup_s": 0.2, "state_s": 0.15, "resume_s": 0.09, "idle_s": 0.56, "steps_redone": redone}
    who = {"view": view, "what": what, "members": members, "workers": workers, "step": step}
    return {"kind": "change", "time": time, **who, **costs}


def churning_run(began: float, total: int = 400) -> Iterator[Entry]:
    """A run whose workers come and go: 2, then 4, one lost (with a roll-back of three steps), then 4 and 3 again."""
    now, number = began + 6.0, 0
    plan: dict[int, tuple[int, str, str, list[str]]] = {
        1: (2, "start", "", []),
        90: (4, "2 workers joined", "join", ["w3", "w4"]),
        260: (4, "1 worker joined", "join", ["w5"]),
        340: (3, "w2 announced its leave", "leave", ["w2"]),
    }
    yield start(began)
    workers, step, lost = 2, 1, False
    while step <= total:
        what, who, redone = "", [], 0
        if step in plan:
            number += 1
            workers, reason, what, who = plan[step]
            yield view(now, number, workers, step, reason)
        if step == 180 and not lost:
            lost, workers, what, who, redone = True, 3, "loss", ["w4"], 3
            number += 1
            why = "w4 was silent beyond its deadline of 30 s"
            yield {"kind": "loss", "time": now, "members": ["w4"], "cause": "node lost", "reason": why}
            yield {"kind": "resume", "time": now + 1.2, "from_step": 176, "checkpoint": None, "reason": "peers' copies"}
            yield view(now + 1.3, number, workers, 177, "w4 lost")
            step, now = 177, now + 1.5
        step_s = 0.08 + 0.5 / workers
        now += step_s
        yield commit(step, now, view=number, workers=workers, total=total, step_s=step_s)
        if what:
            yield change(now, number, what, who, step, workers, redone)
        if step % 50 == 0 or step == total:
            yield evaluation(step, now, total)
            now += 0.8
        if step % 100 == 0:
            yield checkpoint(step, now + 0.4)
        step += 1
    yield {"kind": "end", "time": now + 1.0, "status": "finished", "reason": "budget used"}
