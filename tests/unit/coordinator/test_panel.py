"""What is counted of the ledger's entries, for Prometheus."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal.coordinator.panel import Panel

pytestmark = pytest.mark.unit


class Heard:
    """A metric that notes what it is told."""

    def __init__(self) -> None:
        self.values: dict[tuple[tuple[str, str], ...], float] = {}

    def inc(self, amount: float, tags: dict[str, str]) -> None:
        key = tuple(sorted(tags.items()))
        self.values[key] = self.values.get(key, 0.0) + amount

    def get(self, **tags: str) -> float:
        return self.values.get(tuple(sorted({"run": "gpt-1", "job_name": "gpt", **tags}.items())), 0.0)


@pytest.fixture
def panel(monkeypatch: pytest.MonkeyPatch) -> Panel:
    for kind in ("Gauge", "Counter"):
        monkeypatch.setattr(f"shoal.coordinator.panel.{kind}", lambda *_: Heard())
    scene: Any = SimpleNamespace(
        plan=SimpleNamespace(run_id="gpt-1", job=SimpleNamespace(name="gpt")),
        book=SimpleNamespace(on_entry=None, on_news=None),
        running=None,
    )
    return Panel(scene)


def counted(panel: Panel, name: str, **tags: str) -> float:
    panel.tell()
    found: Any = panel._counters[name]
    return found.get(**tags)


def test_it_hears_the_book(panel: Panel) -> None:
    assert panel._scene.book.on_entry == panel.count


def test_commits_and_their_samples(panel: Panel) -> None:
    for step in range(3):
        panel.count({"kind": "commit", "samples": [32 * step, 32 * step + 32]})
    assert (counted(panel, "shoal_steps"), counted(panel, "shoal_samples")) == (3, 96)
    assert counted(panel, "shoal_steps") == 3, "told once"


def test_changes_by_what_and_where_the_time_went(panel: Panel) -> None:
    costs = {"detect_s": 0.0, "regroup_s": 0.2, "state_s": 0.1, "resume_s": 0.5, "idle_s": 0.4}
    for what, redone in (("leave", 0), ("loss", 2), ("leave", 0)):
        panel.count({"kind": "change", "what": what, "steps_redone": redone, **costs})
    panel.count({"kind": "loss", "cause": "worker lost"})
    assert counted(panel, "shoal_changes", what="leave") == 2
    assert counted(panel, "shoal_change_seconds", what="leave", part="regroup") == pytest.approx(0.4)
    assert counted(panel, "shoal_change_seconds", what="loss", part="idle") == pytest.approx(0.4)
    assert counted(panel, "shoal_steps_redone") == 2
    assert counted(panel, "shoal_losses", cause="worker lost") == 1


def test_totals_become_what_was_added(panel: Panel) -> None:
    for joules in (10.0, 25.0, 25.0, 24.0, 30.0):  # a correction downwards is no loss of energy
        panel.count({"kind": "cost", "joules": {"train": joules}})
    assert counted(panel, "shoal_joules", phase="train") == pytest.approx(30.0)
    panel.count({"kind": "cost", "joules": {"train": 31.0}, "dollars": {"idle": 0.5}})
    assert counted(panel, "shoal_joules", phase="train") == pytest.approx(31.0)
    assert counted(panel, "shoal_dollars", phase="idle") == pytest.approx(0.5)


def test_checkpoints_that_failed_are_told_apart(panel: Panel) -> None:
    panel.count({"kind": "checkpoint", "step": 4, "uri": "x"})
    panel.count({"kind": "checkpoint", "step": 8, "error": "disk full"})
    assert counted(panel, "shoal_checkpoints", result="durable") == 1
    assert counted(panel, "shoal_checkpoints", result="failed") == 1


def test_entries_that_it_does_not_know_are_left_alone(panel: Panel) -> None:
    panel.count({"kind": "something new"})
