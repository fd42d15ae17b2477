"""Addresses in MLflow's UI that show a sweep: its trials as charts, and side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shoal.errors import ConfigError
from shoal.job.recipe import shown
from shoal.run_folder import RunFolder
from shoal.tracking.settings import best_key, is_server
from shoal.tracking.ui import TRAINING
from shoal.tuning.ledger import FILE, SWEEPS
from shoal.tuning.trials import read
from shoal.tuning.view import MAX_TAG, search, view

COMPARED = 100
"""Runs in one address, the best ones: with more, browsers and servers cut it off."""


def children_link(base_url: str, experiment: str, parent: str, *, metric: str, mode: str) -> str:
    """The trials of the sweep whose MLflow run is `parent`, as charts, the best ones first.

    The filter lists them without their parent: below it they would be folded up, and MLflow's charts then empty.
    """
    key = f"metrics.`{best_key(metric)}`"
    query = {
        "searchFilter": search(parent),
        "orderByKey": key,
        "orderByAsc": "true" if mode == "min" else "false",
        "compareRunsMode": "CHART",
    }
    said = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    return f"{base_url.rstrip('/')}/#/experiments/{experiment}/runs?{TRAINING}&{said}"


def view_link(base_url: str, experiment: str, parent: str) -> str:
    """The same, with parallel coordinates, scatter and contour plots set up (`tuning.view`)."""
    said = f"{TRAINING}&viewStateShareKey={parent}&compareRunsMode=CHART"
    return f"{base_url.rstrip('/')}/#/experiments/{experiment}/runs?{said}"


def compare_link(base_url: str, experiment: str, runs: Sequence[str]) -> str:
    """These MLflow runs side by side: parallel coordinates, scatter, box and contour plots."""
    listed = quote(json.dumps(list(runs), separators=(",", ":")), safe="")
    experiments = quote(json.dumps([experiment]), safe="")
    return f"{base_url.rstrip('/')}/#/compare-runs?runs={listed}&experiments={experiments}&{TRAINING}"


def links(folder: Path, base_url: str) -> dict[str, str]:
    """What can be looked at of the sweep in `folder` at the UI under `base_url`: {what: address}; nothing if MLflow has
    not got it yet. Raises ConfigError if that is no sweep."""
    place = _place(folder)
    if not place:
        return {}
    experiment, parent, state = str(place["experiment_id"]), str(place["run_id"]), read(folder / FILE)
    facts = state.facts
    if len(view(facts, parent)) <= MAX_TAG:
        found = {"trials": view_link(base_url, experiment, parent)}
    else:
        found = {"trials": children_link(base_url, experiment, parent, metric=facts.metric, mode=facts.mode)}
    runs = [run for row in state.ranked[:COMPARED] if (run := _place(Path(row.folder)).get("run_id"))]
    if len(runs) > 1:
        found["compared"] = compare_link(base_url, experiment, [str(run) for run in runs])
    return found


def where_recorded(folder: Path) -> list[str]:
    """What to tell the user: the addresses if the record is on a server, else the command that shows them."""
    uri = str(_place(folder).get("uri") or "")
    if is_server(uri):
        return list(links(folder, uri).values())
    return [f"shoal ui --runs {shown(folder.parent.parent)}"]


def newest_sweep(runs: Path) -> Path | None:
    """The folder of the sweep that was active last; None if there is none."""
    found = [(p.stat().st_mtime, p.parent) for p in (runs.absolute() / SWEEPS).glob(f"*/{FILE}")]
    return max(found)[1] if found else None


def _place(folder: Path) -> dict[str, Any]:
    try:
        return RunFolder(folder).read().get("mlflow") or {}
    except (ConfigError, ValueError):
        # A trial that failed before it had a folder.
        return {}
