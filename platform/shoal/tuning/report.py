"""`report.html` and `sweep.json` of a sweep, from its ledger; the schedules of the best from their runs' ledgers."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.run_folder import RunFolder, write_json
from shoal.tracking.ledger import scan
from shoal.tracking.page import asset, finite, number, publish
from shoal.tuning.recipe import BEST
from shoal.tuning.trials import SPENT, Point, SweepFacts, SweepState, TrialRow, Value, read

REPORT, SUMMARY = "report.html", "sweep.json"
POINTS = 60
"""Points of one trial's curve: with hundreds of trials the page stays small."""
SCHEDULES = 5
"""Trials whose learning rates are drawn."""
_SCHEDULE_POINTS = 200


def write_report(folder: Path, ledger: Path) -> Path:
    """Write `report.html` and `sweep.json` into the sweep's folder, in place of older ones; returns the page's path.

    Raises OSError if the folder cannot be written, ConfigError or ShoalError if the ledger is missing or damaged.
    """
    state = read(ledger)
    write_json(folder / SUMMARY, summary(state))
    scripts = asset("shoal.tuning", "fields.js") + asset("shoal.tuning", "sweep.js")
    return publish(
        folder / REPORT,
        title=f"{state.name} · sweep",
        data=report_data(state),
        style=asset("shoal.tuning", "sweep.css"),
        scripts=scripts,
    )


def summary(state: SweepState) -> dict[str, Any]:
    """The sweep as JSON for programs: what was asked, every trial with its curve, which one is the best."""
    best = state.best
    return finite(
        {
            **{name: getattr(state, name) for name in ("name", "status", "reason", "started", "opened", "ended")},
            "facts": dataclasses.asdict(state.facts),
            "best": None if best is None else best.number,
            "trials": [{**dataclasses.asdict(row), "metric": row.metric} for row in state.rows],
        }
    )


def report_data(state: SweepState) -> dict[str, Any]:
    """Everything that the page shows, as JSON values; a number that is not finite becomes null."""
    order, now = state.ranked, time.time()
    ranks = {row.number: place for place, row in enumerate(order)}
    facts = state.facts
    return finite(
        {
            "name": state.name,
            "folder": state.folder,
            "status": state.status,
            "reason": state.reason,
            "started": state.started,
            "ended": state.ended,
            "written": now,
            "elapsed": state.elapsed(now),
            "metric": facts.metric,
            "mode": facts.mode,
            "resource": facts.resource,
            "rungs": list(facts.rungs),
            "objectives": list(facts.objectives),
            "counts": state.counts,
            "cost": {what: state.spent(what) for what in SPENT},
            "axes": axes(state),
            "trials": [_trial(row, facts.resource, ranks.get(row.number)) for row in state.rows],
            "best": _best(state),
            "history": history(state),
            "schedules": [drawn for row in order[:SCHEDULES] if (drawn := _schedule(row)) is not None],
            "facts": _facts(state),
        }
    )


def axes(state: SweepState) -> list[dict[str, Any]]:
    """What was searched, in the order of the space: {name, kind number|choice, log, whole, low and high, or values}.

    A parameter that several families have is one axis here. The space may have been another one when the older trials
    were suggested: an axis reaches over their values, too, and a field that the space has no more is judged by them.
    """
    domains: dict[str, list[Mapping[str, Any]]] = {}
    for domain in state.facts.space:
        domains.setdefault(domain["name"], []).append(domain)
    names = dict.fromkeys([*domains, *(name for row in state.rows for name in row.fields)])
    found = {name: [row.fields[name] for row in state.rows if name in row.fields] for name in names}
    return [_axis(name, domains.get(name, []), found[name]) for name in names]


def _axis(name: str, domains: list[Mapping[str, Any]], found: list[Value]) -> dict[str, Any]:
    numbers = [float(v) for v in found if isinstance(v, (int, float)) and not isinstance(v, bool)]
    asked = [v for d in domains if d["kind"] == "choice" for v in d["values"]]
    ranges = [d for d in domains if d["kind"] != "choice"]
    known = numbers + [float(d[end]) for d in ranges for end in ("low", "high")]
    if asked or not known or len(numbers) < len(found):
        values = list(dict.fromkeys([*asked, *found]))
        return {"name": name, "kind": "choice", "log": False, "whole": False, "values": _in_order(values)}
    low, high = min(known), max(known)
    log = any(d.get("log") for d in ranges) if ranges else low > 0 and high / low > 30
    whole = all(d.get("whole") for d in ranges) if ranges else all(v.is_integer() for v in numbers)
    return {"name": name, "kind": "number", "log": log and low > 0, "whole": whole, "low": low, "high": high}


def _in_order(values: list[Value]) -> list[Value]:
    """Numbers by size, words as they come."""
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return sorted(values) if plain else values  # type: ignore[type-var]


def _trial(row: TrialRow, resource: str, rank: int | None) -> dict[str, Any]:
    curve = thinned([p for p in row.curve if p.resource(resource) is not None], POINTS)
    end = row.ended or row.started
    return {
        **{k: getattr(row, k) for k in ("number", "name", "run_id", "fields", "status", "reason", "total_steps")},
        **{k: getattr(row, k) for k in ("step", "samples", "parent")},
        "rank": rank,
        "best": number(row.best, 6),
        "last": number(row.metric, 6),
        **{k: number(getattr(row, k), 5) for k in SPENT},
        "wall_s": number(end - row.started, 5) if end is not None and row.started is not None else None,
        "x": [number(p.resource(resource), 6) for p in curve],
        "y": [number(p.value, 5) for p in curve],
    }


def thinned(curve: list[Point], most: int) -> list[Point]:
    """At most `most` of these points, the first and the last always."""
    if len(curve) <= most:
        return curve
    return [curve[round(i * (len(curve) - 1) / (most - 1))] for i in range(most)]


def _best(state: SweepState) -> dict[str, Any] | None:
    row, facts = state.best, state.facts
    if row is None or row.best is None:
        return None
    job = Path(state.folder, BEST)
    return {
        "number": row.number,
        "name": row.name,
        "run_id": row.run_id,
        "value": number(row.best, 6),
        "metrics": {k: number(v, 6) for k, v in (row.last.metrics if row.last else {}).items()},
        "fields": row.fields,
        "before": {name: facts.base_fields.get(name) for name in row.fields},
        "command": shlex.join(["shoal", "train", str(job)]) if job.exists() else None,
    }


def history(state: SweepState) -> dict[str, list[Any]]:
    """Each end of a trial: seconds since the start, its best value, and the best one of all until then."""
    over = sorted((r for r in state.rows if r.ended is not None), key=lambda r: (r.ended, r.number))
    better = min if state.facts.mode == "min" else max
    out: dict[str, list[Any]] = {"seconds": [], "value": [], "best": [], "number": []}
    best: float | None = None
    for row in over:
        if row.best is not None and row.status != "failed":
            best = row.best if best is None else better(best, row.best)
        told = None if row.status == "failed" else number(row.best, 6)
        values = (number((row.ended or 0.0) - state.started, 6), told, number(best, 6), row.number)
        for name, value in zip(out, values, strict=True):
            out[name].append(value)
    return out


def _schedule(row: TrialRow) -> dict[str, Any] | None:
    """The learning rate over progress, as the run's commits tell it: what was trained with, not what was meant."""
    place, total = Path(row.folder), row.total_steps
    rates: dict[int, float] = {}
    for run in row.runs:  # of a population, the later ones begin where an earlier one was left
        for entry, _ in scan(RunFolder(place.with_name(run)).ledger):
            if entry["kind"] == "commit" and entry.get("lr") is not None:
                rates[int(entry["step"])] = float(entry["lr"])
    if not rates or not total:
        return None
    steps = sorted(rates)
    keep = sorted({steps[round(i * (len(steps) - 1) / (_SCHEDULE_POINTS - 1))] for i in range(_SCHEDULE_POINTS)})
    return {
        "number": row.number,
        "family": row.fields.get("schedule"),
        "x": [number(s / total, 4) for s in keep],
        "y": [number(rates[s], 4) for s in keep],
    }


def _facts(state: SweepState) -> dict[str, str]:
    facts = state.facts
    said: dict[str, Any] = {
        "base job": facts.base or facts.job,
        "recipe": facts.recipe,
        "metric": f"{facts.metric}, {'lowest' if facts.mode == 'min' else 'highest'} wins",
        "search": facts.search,
        "early stopping": facts.stop_early,
        "objectives": ", ".join(facts.objectives),
        "trials": f"{facts.trials}, {facts.at_once} at once on {facts.workers} workers",
        "budget of the sweep": ", ".join(f"{value:g} {unit}" for unit, value in facts.budget.items()),
        **{f"space: {name}": text for name, text in space_in_words(facts).items()},
        "folder": state.folder,
        "go on": f"shoal sweep {facts.recipe} --resume {state.name}",
    }
    return {name: str(value) for name, value in said.items() if value}


def space_in_words(facts: SweepFacts) -> dict[str, str]:
    """{field: `0.0001 to 0.1, log scale`, or `one of 16, 32, 64`, or `0 to 0.2 (with schedule=Cosine or Rex)`}."""
    words: dict[str, dict[str, list[str]]] = {}
    for domain in facts.space:
        alike = words.setdefault(domain["name"], {}).setdefault(_described(domain), [])
        alike += [f"{name}={value}" for name, value in (domain.get("only_with") or {}).items()]
    return {name: "; ".join(text + _only(families) for text, families in said.items()) for name, said in words.items()}


def _only(families: list[str]) -> str:
    if not families:
        return ""
    return f" (with {families[0]}{''.join(_or(f) for f in families[1:])})"


def _or(family: str) -> str:
    return f" or {family.partition('=')[2]}"


def _described(domain: Mapping[str, Any]) -> str:
    if domain["kind"] == "choice":
        return "one of " + ", ".join(map(str, domain["values"]))
    step = f", in steps of {domain['step']:g}" if domain.get("step") else ""
    scale = ", log scale" if domain.get("log") else ""
    return f"{domain['low']:g} to {domain['high']:g}{step}{scale}"
