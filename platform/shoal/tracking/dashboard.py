"""The Grafana dashboard of Shoal's metrics, as JSON that Grafana imports.

    python -m shoal.tracking.dashboard > cluster_configs/grafana/shoal.json

A test holds that file to what this makes, and the metrics that it draws to those that there are. Format: Grafana's
documentation, "Dashboard JSON model".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT, COLUMNS = 8, 8, 3
SCHEMA = 39
CHOSEN = 'run=~"$run",job_name=~"$job"'
"""Every query is about the runs that are chosen above the panels."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. In the queries `NAME[]` stands for a metric of the chosen runs, `NAME[x="y"]` for some of it."""

    title: str
    queries: tuple[tuple[str, str], ...]
    """(query, legend)."""
    unit: str = "short"
    kind: str = "timeseries"
    stacked: bool = False


PANELS = (
    Panel("Phase", (("shoal_phase[] == 1", "{{run}}: {{phase}}"),), kind="state-timeline"),
    Panel("Share of the steps done", (("shoal_step[] / shoal_expected_steps[]", "{{run}}"),), "percentunit"),
    Panel("Training loss", (("shoal_loss[]", "{{run}}"),)),
    Panel("Samples per second", (("rate(shoal_samples_total[][2m])", "{{run}}"),)),
    Panel("Steps per second", (("rate(shoal_steps_total[][2m])", "{{run}}"),)),
    Panel(
        "A step and its parts",
        (("shoal_step_seconds[]", "{{run}}: whole"), ("shoal_step_part_seconds[]", "{{run}}: {{part}}")),
        "s",
    ),
    Panel(
        "Share of a step that waits for data",
        (('shoal_step_part_seconds[part="data_wait"] / ignoring(part) shoal_step_seconds[]', "{{run}}"),),
        "percentunit",
    ),
    Panel(
        "Workers",
        (("shoal_workers[]", "{{run}}: {{state}}"), ("shoal_workers_wanted[]", "{{run}}: wanted, {{bound}}")),
    ),
    Panel("Views and changes in 5 minutes", (
        ("increase(shoal_changes_total[][5m])", "{{run}}: {{what}}"),
        ("changes(shoal_view[][5m])", "{{run}}: views"),
    )),
    Panel(
        "Seconds of a change, by part",
        ((
            "sum by (run, what, part) (increase(shoal_change_seconds_total[][$__range])) / ignoring(part) group_left "
            "sum by (run, what) (increase(shoal_changes_total[][$__range]))",
            "{{run}} {{what}}: {{part}}",
        ),),
        "s",
    ),
    Panel("Losses by cause, steps computed again", (
        ("increase(shoal_losses_total[][$__range])", "{{run}}: {{cause}}"),
        ("increase(shoal_steps_redone_total[][$__range])", "{{run}}: steps computed again"),
    )),
    Panel("Steps that one more loss would cost", (("shoal_uncommitted_steps[]", "{{run}}"),)),
    Panel(
        "Since the last",
        (
            ("shoal_commit_age_seconds[]", "{{run}}: commit"),
            ("shoal_snapshot_age_seconds[]", "{{run}}: snapshot"),
            ("shoal_checkpoint_age_seconds[]", "{{run}}: checkpoint"),
        ),
        "s",
    ),
    Panel("Checkpoints", (("increase(shoal_checkpoints_total[][$__range])", "{{run}}: {{result}}"),)),
    Panel("The record is behind", (("shoal_record_behind[]", "{{run}}"),)),
    Panel("Power", (("rate(shoal_joules_total[][2m])", "{{run}}: {{phase}}"),), "watt", stacked=True),
    Panel(
        "Dollars per hour", (("3600 * rate(shoal_dollars_total[][2m])", "{{run}}: {{phase}}"),), "currencyUSD",
        stacked=True,
    ),
)  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    variables = [_variable("job", "label_values(ray_shoal_step, job_name)")]
    variables.append(_variable("run", 'label_values(ray_shoal_step{job_name=~"$job"}, run)'))
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus", "hide": 0}
    return {
        "uid": "shoal",
        "title": "Shoal",
        "description": "Runs of Shoal; what to do when: docs/operations.md",
        "tags": ["shoal", "ray"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, *variables]},
        "panels": [_drawn(i, panel) for i, panel in enumerate(PANELS)],
    }


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 2,
    }


def _drawn(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    custom = {"stacking": {"mode": "normal" if panel.stacked else "none"}, "fillOpacity": 20 if panel.stacked else 0}
    return {
        "id": number + 1,
        "title": panel.title,
        "type": panel.kind,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "custom": custom if panel.kind == "timeseries" else {}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query_of(text), "legendFormat": legend}
            for i, (text, legend) in enumerate(panel.queries)
        ],
    }


def query_of(text: str) -> str:
    """A query in full: `shoal_step[]` is `ray_shoal_step{run=~"$run",job_name=~"$job"}`."""

    def whole(found: re.Match[str]) -> str:
        name, more = found.groups()
        return f"ray_{name}{{{CHOSEN}{',' + more if more else ''}}}"

    return re.sub(r'\b(shoal_\w+)\[((?:\w+="\w+")?)\]', whole, text)


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
