"""The metrics that there are, those that the dashboard draws, and those that the docs explain are the same."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from shoal.tracking.dashboard import dashboard, query_of
from shoal.tracking.metrics import METRICS, TAGS

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
FILE = ROOT / "cluster_configs" / "grafana" / "shoal.json"
EXPORTED = {m.exported for m in METRICS}


def test_the_dashboard_file_is_up_to_date() -> None:
    again = "python -m shoal.tracking.dashboard > cluster_configs/grafana/shoal.json"
    assert json.loads(FILE.read_text()) == dashboard(), f"make it again: {again}"


def test_the_dashboard_draws_every_metric_and_no_other() -> None:
    drawn = set(re.findall(r"\bray_shoal_\w+", json.dumps(dashboard()["panels"])))
    assert drawn == EXPORTED


def test_queries_are_whole() -> None:
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for opening, closing in ("()", "{}", "[]"):
                assert query.count(opening) == query.count(closing), query
            chosen = re.findall(r"ray_shoal_\w+(\{[^}]*\})?", query)
            assert all('run=~"$run"' in found for found in chosen), f"not of the chosen runs alone: {query}"
            labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            known = {t for m in METRICS if m.exported in query for t in (*TAGS, *m.tags)}
            assert labels <= known, f"{target['legendFormat']} names labels that {query} has not"
    ids = [p["id"] for p in dashboard()["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard()["panels"]]
    assert len(set(places)) == len(places)


def test_a_query_names_the_chosen_runs() -> None:
    whole = query_of('rate(shoal_steps_total[][2m]) / shoal_step_part_seconds[part="data_wait"]')
    chosen = 'run=~"$run",job_name=~"$job"'
    assert whole == (
        f'rate(ray_shoal_steps_total{{{chosen}}}[2m]) / ray_shoal_step_part_seconds{{{chosen},part="data_wait"}}'
    )


def test_every_metric_is_filled_in() -> None:
    """The panel names each of them, and only such."""
    source = (ROOT / "platform" / "shoal" / "coordinator" / "panel.py").read_text()
    texts = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    named = {t for t in texts if re.fullmatch(r"shoal_[a-z_]+[a-z]", t)}
    assert named | {"shoal_joules", "shoal_dollars"} == {m.name for m in METRICS}


def test_the_page_for_operators_explains_every_metric() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    missing = {m.name for m in METRICS} - set(re.findall(r"\bshoal_\w+[a-z]", page))
    assert not missing
