"""Ledgers like those of real sweeps, with the runs of their trials: for tests, and for looking at the pages."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shoal.job.schedules import Constant, Cosine, Linear, Rex
from shoal.optim.schedules import factor
from shoal.run_folder import RunFolder, write_json
from shoal.tracking.ledger import Ledger
from shoal.tuning.ledger import FILE, sweep_folder
from shoal.tuning.trials import SweepFacts, SweepState, heard

Entry = dict[str, Any]

FAMILIES = {"Constant": Constant, "Cosine": Cosine, "Linear": Linear, "Rex": Rex}
RUNGS = (1200.0, 2400.0, 4800.0)
STEPS = 10800 // 36
RANGE = {"kind": "range", "low": 0.0, "high": 0.2, "log": False, "step": None, "whole": False}


def facts(trials: int, **changes: Any) -> SweepFacts:
    said: dict[str, Any] = {
        "job": "gpt",
        "recipe": "tuning/lr_schedule.py",
        "base": "jobs/gpt.py",
        "base_digest": "5f2a91c07be3d4aa",
        "base_fields": {"optimizer.lr": "0.001", "batch.size": "32", "schedule": "Cosine", "schedule.warmup": "0.05"},
        "space": (
            {"name": "optimizer.lr", **RANGE, "low": 1e-4, "high": 3e-2, "log": True},
            {"name": "batch.size", "kind": "choice", "values": [16, 32, 64, 128]},
            {"name": "schedule", "kind": "choice", "values": list(FAMILIES)},
            *({"name": "schedule.warmup", **RANGE, "only_with": {"schedule": f}} for f in FAMILIES),
            {"name": "schedule.final", **RANGE, "high": 0.3, "only_with": {"schedule": "Rex"}},
        ),
        "metric": "val/loss",
        "mode": "min",
        "search": "TPE(seed=0)",
        "stop_early": "ASHA(grace=1200, reduction=2)",
        "resource": "samples",
        "rungs": RUNGS,
        "objectives": (),
        "trials": trials,
        "at_once": 2,
        "workers": 4,
        "budget": {"seconds": 3600.0},
    }
    return SweepFacts(**{**said, **changes})


def sampled(dice: random.Random) -> dict[str, Any]:
    family = dice.choice(list(FAMILIES))
    fields: dict[str, Any] = {
        "optimizer.lr": 10 ** dice.uniform(-4, math.log10(3e-2)),
        "batch.size": dice.choice([16, 32, 64, 128]),
        "schedule": family,
        "schedule.warmup": dice.uniform(0, 0.2),
    }
    return {**fields, **({"schedule.final": dice.uniform(0, 0.3)} if family == "Rex" else {})}


def goodness(fields: dict[str, Any]) -> float:
    """The loss that a trial ends with: best near a rate that grows with the root of the batch, with Rex."""
    wanted = -2.6 + 0.5 * math.log10(fields["batch.size"] / 32)
    off = math.log10(fields["optimizer.lr"]) - wanted
    family = {"Constant": 0.16, "Linear": 0.03, "Cosine": 0.02, "Rex": 0.0}[fields["schedule"]]
    return 1.62 + 0.35 * off * off + family + 0.04 * abs(math.log2(fields["batch.size"] / 32))


def entries(count: int, began: float, runs: Path, *, name: str = "lr_schedule", over: bool = True) -> Iterator[Entry]:
    """A sweep of `count` trials, two at a time, stopped early at the rungs; one of them fails. `over`: to the end, or
    until the last trials but two run. The same for the same arguments."""
    dice, said = random.Random(count), facts(count)
    yield {"kind": "opened", "time": began, "name": name, "facts": dataclasses.asdict(said)}
    slots, bests, digits = [began + 2.0, began + 2.5], {rung: [] for rung in RUNGS}, len(str(count - 1))
    out: list[Entry] = []
    for number in range(count):
        fields, slot = sampled(dice), min(range(2), key=lambda i: slots[i])
        run = f"{name}-{number:0{max(2, digits)}}"
        now = slots[slot]
        place = {"trial": number, "run": run, "folder": str(runs / run), "fields": fields}
        out.append({"kind": "suggested", "time": now, "name": run, **place})
        out.append({"kind": "started", "time": now + 0.1, "trial": number, "total_steps": STEPS})
        unfinished = not over and number >= count - 2
        told, now = _trial(number, fields, now, dice, bests, unfinished=unfinished, fails=number == 2)
        out += told
        slots[slot] = now + 0.6
    yield from sorted(out, key=lambda e: e["time"])
    if over:
        yield {"kind": "closed", "time": max(slots), "status": "finished", "reason": "all trials are over", "best": 0}


def state_of(told: Iterable[Entry], folder: Path = Path("sweep")) -> SweepState:
    """The sweep that these entries tell of."""
    state: SweepState | None = None
    for entry in told:
        state = heard(folder, state, entry)
    assert state is not None, "there is an entry"
    return state


def _trial(
    number: int,
    fields: dict[str, Any],
    now: float,
    dice: random.Random,
    bests: dict[float, list[float]],
    *,
    unfinished: bool,
    fails: bool,
) -> tuple[list[Entry], float]:
    out: list[Entry] = []
    end, pace = goodness(fields) + dice.gauss(0, 0.02), 0.02 * (32 / fields["batch.size"]) ** 0.5 + 0.01
    diverges = fields["optimizer.lr"] > 1.8e-2 and fields["batch.size"] < 64
    points, fall = 30, dice.uniform(4.5, 6.5)
    for k in range(1, points + 1):
        step, samples = STEPS * k // points, 10800 * k // points
        now += STEPS / points * pace
        if fails and k == 1:
            error = "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB\n  in forward, mine.py:31"
            return [*out, {"kind": "ended", "time": now, "trial": number, "status": "failed", "reason": error}], now
        value = end + 3.9 * math.exp(-k / points * fall) + (0.25 * (k - 8) if diverges and k > 8 else 0.0)
        value *= dice.lognormvariate(0, 0.012)
        spent = STEPS * k / points * pace
        costs = {"seconds": spent, "worker_seconds": 2 * spent, "joules": 31.0 * spent, "dollars": 2 * spent / 3600}
        metrics = {"val/loss": value, "val/bits_per_byte": value / math.log(2)}
        told = {"value": None if diverges and k > 14 else value, "metrics": metrics, "step": step, "samples": samples}
        out.append({"kind": "result", "time": now, "trial": number, **told, **costs})
        if unfinished and k == 2 + number % 2:
            return out, now
        for rung in RUNGS:
            if samples - 360 < rung <= samples:
                bests[rung].append(value)
                if len(bests[rung]) > 2 and value > sorted(bests[rung])[len(bests[rung]) // 2]:
                    why = f"at {samples} samples, {value:.4g} is not among the better half of {len(bests[rung])} trials"
                    ended = {"kind": "ended", "time": now, "trial": number, "status": "stopped-early", "reason": why}
                    return [*out, ended], now
    return [*out, {"kind": "ended", "time": now, "trial": number, "status": "finished", "reason": ""}], now


def write_sweep(runs: Path, count: int, *, began: float, over: bool = True, with_runs: bool = True) -> Path:
    """Write the sweep's folder and those of its trials' runs; returns the former."""
    folder = sweep_folder(runs, "lr_schedule")
    made = list(entries(count, began, runs.absolute(), over=over))
    ledger = Ledger(folder / FILE)
    ledger.append(made)
    ledger.close()
    if over:
        (folder / "best.py").write_text("# the best job\n")
    for entry in made if with_runs else []:
        if entry["kind"] == "suggested":
            _write_run(entry, [e for e in made if e.get("trial") == entry["trial"]])
    return folder


def run_entries(suggested: Entry, told: list[Entry]) -> Iterator[Entry]:
    """The ledger of a trial's run, from what the sweep's ledger tells of the trial."""
    fields, began = suggested["fields"], suggested["time"]
    parts = {k.partition(".")[2]: v for k, v in fields.items() if k.startswith("schedule.")}
    if fields["schedule"] == "Constant":
        parts.pop("final", None)
    schedule = FAMILIES[fields["schedule"]](**parts)
    yield {"kind": "start", "time": began, "run": suggested["run"], "job_digest": "5f2a", "total_steps": STEPS}
    before = 0
    for entry in told:
        if entry["kind"] == "result":
            for step in range(before + 1, entry["step"] + 1):
                lr = fields["optimizer.lr"] * factor(schedule, step / STEPS)
                loss = {"loss": entry["metrics"]["val/loss"] - 0.05, "lr": lr, "workers": 2, "samples_per_s": 900.0}
                yield {"kind": "commit", "time": entry["time"] - 0.01, "step": step, "view": 1, **loss}
            before = entry["step"]
            step = {"step": entry["step"], "metrics": entry["metrics"], "seconds": 0.1}
            yield {"kind": "evaluation", "time": entry["time"], **step}
        elif entry["kind"] == "ended":
            status = {"stopped-early": "stopped"}.get(entry["status"], entry["status"])
            reason = entry["reason"] or "budget used"
            yield {"kind": "end", "time": entry["time"], "status": status, "reason": reason}


def _write_run(suggested: Entry, told: list[Entry]) -> None:
    run = RunFolder(Path(suggested["folder"]))
    run.path.mkdir(parents=True)
    run.update(name="gpt", status="finished", total_steps=STEPS)
    write_json(run.job, {"values": {k: str(v) for k, v in suggested["fields"].items()}})
    ledger = Ledger(run.ledger)
    ledger.append(list(run_entries(suggested, told)))
    ledger.close()
