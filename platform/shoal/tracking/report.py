"""`report.html`: the whole run on one page, from its ledger alone. Opens anywhere, and asks the network for nothing."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from shoal.run_folder import RunFolder
from shoal.tracking.changes import PARTS
from shoal.tracking.expenses import PHASES, UNITS, USEFUL, split
from shoal.tracking.history import SMOOTHING_STEPS, History, recent_rate, smooth, thin
from shoal.tracking.ledger import Entry, scan
from shoal.tracking.owner import is_alive
from shoal.tracking.page import asset, finite, number, publish

POINTS = 600
"""Points of a curve: about one per pixel of a chart."""
_MOST_ROWS = 200
"""Rows of a table; of longer ones, the newest."""


def write_report(folder: RunFolder) -> Path:
    """Write `report.html` into the run folder, in place of an older one, and return its path.

    Raises OSError if the folder cannot be written, ShoalError if the ledger is damaged.
    """
    data = report_data(folder)
    title = f"{data['name']} · {data['run_id']}"
    return publish(folder.report, title=title, data=data, scripts=asset("shoal.tracking", "page.js"))


def report_data(folder: RunFolder) -> dict[str, Any]:
    """Everything that the page shows, as JSON values; a number that is not finite becomes null."""
    history = History().add(entry for entry, _ in scan(folder.ledger))
    run = _json(folder.path / "run.json")
    record, job = _json(folder.record), _json(folder.job)
    tags = record.get("settings", {}).get("tags", {})
    steps = history.commits["step"]
    began = next((e["time"] for e in history.events if e["kind"] == "start"), None)
    began = began if began is not None else (history.commits["time"][0] if steps else time.time())
    return {
        "run_id": folder.run_id,
        "name": str(run.get("name") or folder.run_id),
        "folder": str(folder.path),
        "written": time.time(),
        "began": began,
        **_status(run, history),
        "total_steps": run.get("total_steps"),
        "headline": finite(_headline(history, began)),
        "curves": _curves(history),
        "evaluations": [_evaluation(e) for e in history.evaluations],
        "checkpoints": [_checkpoint(e) for e in history.checkpoints[-_MOST_ROWS:]],
        "events": [_event(e) for e in history.events if e["kind"] != "change"][-_MOST_ROWS:],
        "views": [_view(e) for e in history.events if e["kind"] == "view"],
        "changes": [_change(e) for e in history.events if e["kind"] == "change"][-_MOST_ROWS:],
        "cost": _cost(history.cost),
        "departures": [_departure(e) for e in history.departures[-_MOST_ROWS:]],
        "parameters": {**job.get("values", {}), "run again": job.get("run_again", "")},
        "versions": {k.removeprefix("version."): v for k, v in tags.items() if k.startswith("version.")},
        "code": {k.removeprefix("mlflow.source."): v for k, v in tags.items() if k.startswith("mlflow.source.")},
    }


def _status(run: dict[str, Any], history: History) -> dict[str, Any]:
    last = history.events[-1] if history.events else None
    if last is not None and last["kind"] == "end":
        return {"status": last["status"], "reason": last.get("reason") or "", "ended": last["time"]}
    status = str(run.get("status") or "running")
    alive = status not in ("running", "starting") or is_alive(run.get("owner"))
    return {"status": status if alive else "died", "reason": run.get("reason") or "", "ended": None}


def _headline(history: History, began: float) -> dict[str, Any]:
    columns, steps = history.commits, history.commits["step"]
    workers = [int(w) for w in columns["workers"] if math.isfinite(w)]
    losses = [(e["metrics"]["val/loss"], e["step"]) for e in history.evaluations if "val/loss" in e["metrics"]]
    best = min((x for x in losses if x[0] is not None and math.isfinite(x[0])), default=(None, None))
    end = max([*(e["time"] for e in history.events[-1:]), *columns["time"][-1:]], default=began)
    lost = sum(len(e.get("members", ())) or 1 for e in history.events if e["kind"] == "loss")
    return {
        "step": int(steps[-1]) if steps else 0,
        "epoch": history.epoch,
        "loss": smooth(columns["loss"][-200:], 10)[-1] if steps else None,
        "first_loss": columns["loss"][0] if steps else None,
        "val": losses[-1][0] if losses else None,
        "val_metrics": history.evaluations[-1]["metrics"] if history.evaluations else {},
        "best": best[0],
        "best_step": best[1],
        "samples_per_s": recent_rate(history, "samples_per_s"),
        "tokens_per_s": recent_rate(history, "tokens_per_s"),
        "wall_s": end - began,
        "workers": workers[-1] if workers else None,
        "fewest": min(workers, default=None),
        "most": max(workers, default=None),
        "views": sum(e["kind"] == "view" for e in history.events),
        "lost": lost,
        "redone": history.redone,
    }


def _curves(history: History) -> dict[str, list[Any]]:
    """Columns for the charts, each of at most POINTS values of four to five digits."""
    columns = dict(history.commits)
    span = min(SMOOTHING_STEPS, max(1.0, len(columns["loss"]) / 30))
    rows = thin({**columns, "smooth": smooth(columns["loss"], span)}, POINTS)
    names = list(rows[0]) if rows else []
    exact = ("step", "time")
    return {n: [number(r[n], None if n in exact else 5) for r in rows] for n in names}


def _evaluation(entry: Entry) -> dict[str, Any]:
    metrics = {k: number(v, 6) for k, v in entry["metrics"].items()}
    return {"step": entry["step"], "time": entry["time"], "seconds": entry.get("seconds"), "metrics": metrics}


def _checkpoint(entry: Entry) -> dict[str, Any]:
    return {k: entry.get(k) for k in ("step", "time", "uri", "bytes", "seconds", "error")}


def _view(entry: Entry) -> dict[str, Any]:
    return {
        "time": entry["time"],
        "number": entry["number"],
        "first_step": entry.get("first_step"),
        "size": len(entry["members"]),
        "reason": entry.get("reason") or "",
    }


def _change(entry: Entry) -> dict[str, Any]:
    seconds = {part: entry.get(f"{part}_s") for part in (*PARTS, "idle")}
    return {
        **{k: entry.get(k) for k in ("time", "view", "what", "workers", "step", "steps_redone")},
        "members": ", ".join(map(str, entry.get("members", ()))),
        **{part: number(value, 4) for part, value in seconds.items()},
    }


def _cost(entry: Entry) -> dict[str, Any] | None:
    """What the run has used, in all, per million tokens or samples, and by phase; None: nobody counted."""
    if not entry:
        return None
    parts = {unit: split(entry.get(unit) or {}) for unit in UNITS}
    counted = "tokens" if entry.get("tokens") else "samples"
    amount = entry.get(counted) or 0
    rows = [
        {"phase": phase, "useful": phase in USEFUL, **{u: number((entry.get(u) or {}).get(phase), 4) for u in UNITS}}
        for phase in PHASES
        if any((entry.get(u) or {}).get(phase) for u in UNITS)
    ]
    return {
        "total": {u: number(sum(p), 4) if entry.get(u) else None for u, p in parts.items()},
        "wasted": {
            u: number(wasted / (useful + wasted) if useful + wasted else 0.0, 3)
            for u, (useful, wasted) in parts.items()
        },
        "per_million": {u: number(sum(parts[u]) / amount * 1e6, 4) if amount and entry.get(u) else None for u in UNITS},
        "counted": counted,
        "co2_g": number(entry["co2_g"], 4),
        **{name: entry[name] for name in ("carbon", "sources", "prices")},
        "phases": rows,
    }


def _departure(entry: Entry) -> dict[str, Any]:
    totals = {u: number(sum((entry.get(u) or {}).values()), 4) if entry.get(u) else None for u in UNITS}
    wasted = split(entry.get("seconds") or {})[1]
    said = {k: entry.get(k) for k in ("member", "lost", "joined", "left", "source", "price")}
    return {**said, **totals, "wasted_s": number(wasted, 4)}


def _event(entry: Entry) -> dict[str, Any]:
    kind = entry["kind"]
    if kind == "view":
        members = ", ".join(str(m["id"]) for m in entry["members"])
        text = f"view {entry['number']} from step {entry.get('first_step')}: {members}"
        moves = (("joined", entry.get("joined")), ("left", entry.get("left")), ("lost", entry.get("lost")))
        said = "; ".join(f"{', '.join(map(str, who))} {what}" for what, who in moves if who)
        text += f" ({said})" if said else ""
    elif kind == "loss":
        text = f"lost {', '.join(map(str, entry.get('members', ())))}: {entry.get('cause') or ''}"
    elif kind == "resume":
        text = f"went on after step {entry['from_step']}"
        text += f" from {entry['checkpoint']}" if entry.get("checkpoint") else ""
    elif kind == "batch":
        text = f"batches of {entry['size']} from step {entry['step']}"
    elif kind == "scale":
        text = f"{entry['min']} to {entry['max']} workers from now on"
    elif kind == "end":
        text = str(entry["status"])
    else:
        text = f"job {str(entry.get('job_digest') or '')[:12]}"
    return {"time": entry["time"], "kind": kind, "text": text, "reason": entry.get("reason") or entry.get("why") or ""}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
