"""A view of a sweep's trials for MLflow's UI: parallel coordinates, scatter and contour plots, all set up.

It is what the UI's own "Share" button makes: a value in JSON, kept as a tag of the experiment, and an address with the
tag's key. Written for the UI of MLflow 3; one that does not understand it says so and shows the experiment.
"""

from __future__ import annotations

import json
from typing import Any

from shoal.tracking.sender import PARENT_TAG
from shoal.tracking.settings import best_key
from shoal.tuning.trials import SweepFacts

VIEW_TAG = "mlflow.sharedViewState."
MAX_TAG = 20_000
"""Characters that MLflow keeps of an experiment's tag."""
_SECTION = "Sweep"
_LEARNING_RATE, _ITS_LOG = "optimizer.lr", "log10_lr"


def view(facts: SweepFacts, parent: str) -> str:
    """The view of the trials below the MLflow run `parent`, as the experiment's tag holds it."""
    best = best_key(facts.metric)
    fields = plotted(facts)
    cards: list[dict[str, Any]] = [
        {"type": "PARALLEL", "selectedParams": fields, "selectedMetrics": [best], "showAllRuns": True},
        *({"type": "SCATTER", "xaxis": _param(field), "yaxis": _metric(best)} for field in fields[:2]),
    ]
    if len(fields) > 1:
        cards.append(
            {"type": "CONTOUR", "xaxis": _param(fields[0]), "yaxis": _param(fields[1]), "zaxis": _metric(best)}
        )
    charts = [_card(i, card) for i, card in enumerate(cards)]
    charts += [_card(len(charts), _line(best)), _card(len(charts) + 1, _line(facts.metric))]
    state: dict[str, Any] = {
        "searchFilter": search(parent),
        "orderByKey": f"metrics.`{best}`",
        "orderByAsc": facts.mode == "min",
        "compareRunCharts": charts,
        "compareRunSections": [
            {"uuid": _SECTION, "name": _SECTION, "display": True, "isReordered": True, "deleted": False}
        ],
        "isAccordionReordered": True,
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    return json.dumps(state)


def search(parent: str) -> str:
    """The filter that lists the runs below `parent`."""
    return f"tags.`{PARENT_TAG}` = '{parent}'"


def plotted(facts: SweepFacts) -> list[str]:
    """The searched fields that every trial has, the learning rate first and as its logarithm: axes there are linear."""
    fields = [domain["name"] for domain in facts.space if not domain.get("only_with")]
    if _LEARNING_RATE in fields:
        fields.remove(_LEARNING_RATE)
        fields.insert(0, _ITS_LOG)
    return fields


def _card(number: int, card: dict[str, Any]) -> dict[str, Any]:
    common = {"runsCountToCompare": 100, "metricSectionId": _SECTION, "deleted": False, "isGenerated": False}
    return {"uuid": f"sweep-{number}", **common, **card}


def _line(metric: str) -> dict[str, Any]:
    scale = {"xAxisScaleType": "linear", "scaleType": "linear", "lineSmoothness": 0}
    return {"type": "LINE", "metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step", **scale}


def _param(key: str) -> dict[str, str]:
    return {"key": key, "type": "PARAM"}


def _metric(key: str) -> dict[str, str]:
    return {"key": key, "type": "METRIC"}
