"""Ledgers like those of real runs, for tests of the record and for looking at its pages."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

Entry = dict[str, Any]


def start(time: float, run: str = "gpt-20261120-083112-a1b2") -> Entry:
    return {"kind": "start", "time": time, "run": run, "job_digest": "5f2a91c07be3d4aa"}


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


def commit(step: int, time: float, *, workers: int = 2, total: int = 400, step_s: float = 0.2, seed: int = 0) -> Entry:
    """A commit whose loss falls like that of a byte-level language model. The same for the same step and seed."""
    noise = random.Random(seed * 1_000_003 + step)
    progress = step / total
    loss = 1.35 + 4.2 * math.exp(-step / (0.09 * total)) + 0.9 * math.exp(-step / (0.5 * total))
    lr = 1e-3 * min(1.0, progress / 0.05) * (0.55 + 0.45 * math.cos(math.pi * progress))
    compute, communicate = step_s * 0.72, step_s * (0.05 + 0.04 * workers)
    wobble = noise.uniform(0.93, 1.09)
    return {
        "kind": "commit",
        "time": round(time, 3),
        "step": step,
        "view": 1,
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


def evaluation(step: int, time: float, total: int = 400) -> Entry:
    loss = 1.42 + 4.2 * math.exp(-step / (0.09 * total)) + 0.93 * math.exp(-step / (0.5 * total))
    metrics = {"val/loss": loss, "val/bits_per_byte": loss / math.log(2), "val/perplexity": math.exp(loss)}
    return {"kind": "evaluation", "time": time, "step": step, "metrics": metrics, "seconds": 0.8}


def checkpoint(step: int, time: float) -> Entry:
    uri = f"/data/runs/gpt/checkpoints/step-{step:08d}"
    return {"kind": "checkpoint", "time": time, "step": step, "uri": uri, "bytes": 10_523_648, "seconds": 0.41}


def churning_run(began: float, total: int = 400) -> Iterator[Entry]:
    """A run whose workers come and go: 2, then 4, one lost (with a roll-back of three steps), then 4 and 3 again."""
    now, number = began + 6.0, 1
    plan = {
        1: (2, "start"),
        90: (4, "2 workers joined"),
        260: (4, "1 worker joined"),
        340: (3, "w2 announced its leave"),
    }
    yield start(began)
    workers, step, lost = 2, 1, False
    while step <= total:
        if step in plan:
            workers, reason = plan[step]
            yield view(now, number, workers, step, reason)
            number += 1
        if step == 180 and not lost:
            lost, workers = True, 3
            why = "w4 was silent beyond its deadline of 30 s"
            yield {"kind": "loss", "time": now, "members": ["w4"], "cause": "node lost", "reason": why}
            yield {"kind": "resume", "time": now + 1.2, "from_step": 176, "checkpoint": None, "reason": "peers' copies"}
            yield view(now + 1.3, number, workers, 177, "w4 lost")
            number, step, now = number + 1, 177, now + 1.5
        step_s = 0.08 + 0.5 / workers
        now += step_s
        yield commit(step, now, workers=workers, total=total, step_s=step_s)
        if step % 50 == 0 or step == total:
            yield evaluation(step, now, total)
            now += 0.8
        if step % 100 == 0:
            yield checkpoint(step, now + 0.4)
        step += 1
    yield {"kind": "end", "time": now + 1.0, "status": "finished", "reason": "budget used"}
