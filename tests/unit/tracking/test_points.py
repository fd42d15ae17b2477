"""From entries to points: every step once, whatever is rolled back, and wherever the sender crashes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.tracking.points import BEST, PER_STEP, WORKERS, Point, Progress, clean_key, parcels, unsent
from tests.support.ledgers import change, churning_run, commit, cost, evaluation

pytestmark = pytest.mark.unit


def numbered(entries, start: int = 0):
    """Entries with offsets as if each were ten bytes long."""
    return [(e, 10 * (i + 1)) for i, e in enumerate(entries)][start:]


def points_of(entries, progress: Progress | None = None, **more) -> list[Point]:
    return [p for parcel in parcels(numbered(entries), progress or Progress(), **more) for p in parcel.points]


def test_a_run_with_a_roll_back_shows_every_step_once() -> None:
    entries = list(churning_run(1_000.0))
    points = points_of(entries)
    assert Counter(p.step for p in points if p.key == "train/loss") == Counter(range(1, 401))
    assert max(Counter((p.key, p.step) for p in points).values()) == 1
    by_step = {e["step"]: e for e in reversed(entries) if e["kind"] == "commit"}
    assert all(p.value == by_step[p.step]["loss"] for p in points if p.key == "train/loss")
    assert all(p.time_ms == round(by_step[p.step]["time"] * 1000) for p in points if p.key == "train/loss")


def test_times_and_rates_are_means_over_a_second() -> None:
    first = [commit(s, 100.0 + s / 10, step_s=0.1) for s in range(1, 9)]
    points = {(p.key, p.step): p.value for p in points_of(first)}
    assert points["work/step_s", 8] == pytest.approx(sum(c["step_s"] for c in first) / 8)
    assert points["work/samples_per_s", 8] == pytest.approx(8 * 64 / sum(c["step_s"] for c in first))
    assert points[WORKERS, 8] == 2
    assert {k for k, s in points if s == 3} == set(PER_STEP.values())


def test_what_a_run_took_is_told_with_the_wasted_part_and_per_million_tokens() -> None:
    (parcel,) = parcels(numbered([cost(10, 5.0, joules=3000.0)]), Progress())
    values = {p.key.removeprefix("cost/"): p.value for p in parcel.points}
    assert values == pytest.approx(
        {
            "co2_g": 3000 / 3.6e6 * 475,
            "joules": 3000.0,
            "joules_wasted": 900.0,
            "joules_per_million_tokens": 3000 / (10 * 64 * 128) * 1e6,
            "dollars": 2.0,
            "dollars_wasted": 0.6,
            "dollars_per_million_tokens": 2 / (10 * 64 * 128) * 1e6,
        }
    )
    assert {p.step for p in parcel.points} == {10}
    assert parcel.tags["shoal.energy_source"] == "nvml+cpu-estimate"
    plain = {p.key for p in points_of([cost(10, 5.0, priced=False, tokens=False)])}
    assert "cost/joules_per_million_samples" in plain
    assert not any("dollars" in key for key in plain)


def test_what_was_decided_about_steps_parts_no_second() -> None:
    first = [commit(s, 100.0 + s / 10, step_s=0.1) for s in range(1, 9)]
    decided = [{"kind": "course", "time": c["time"], "decided": [[c["step"], 0.1]]} for c in first]
    mixed = [e for pair in zip(decided, first, strict=True) for e in pair]
    assert points_of(mixed) == points_of(first)


def test_the_running_second_waits_for_its_end() -> None:
    entries = [commit(1, 100.2), commit(2, 101.1), commit(3, 101.7)]
    assert {p.step for p in points_of(entries, before=101.0)} == {1}
    assert {p.step for p in points_of(entries, before=102.0)} == {1, 3, 2}


def test_missing_values_make_no_points() -> None:
    bare = {"kind": "commit", "time": 5.0, "step": 1, "loss": 2.0, "grad_norm": None, "samples_per_s": 3.0}
    assert points_of([bare]) == [Point("train/loss", 2.0, 5000, 1), Point("work/samples_per_s", 3.0, 5000, 1)]


def test_the_best_validation_loss_is_a_metric_of_its_own() -> None:
    entries = [{**evaluation(s, float(s)), "metrics": {"val/loss": v}} for s, v in enumerate([3.0, math.nan, 2.0, 2.5])]
    assert [p.value for p in points_of(entries) if p.key == BEST] == [3.0, 2.0, 2.0]
    assert [p.step for p in points_of(entries) if p.key == "val/loss"] == [0, 1, 2, 3]


def test_statuses_follow_the_ledger() -> None:
    ends = [{"kind": "end", "time": 9.0, "status": s, "reason": s.upper()} for s in ("finished", "failed", "stopped")]
    start = {"kind": "start", "time": 1.0, "run": "r"}
    sent = list(parcels(numbered([start, ends[0], start, ends[1], start, ends[2]]), Progress()))
    assert [p.status for p in sent] == ["RUNNING", "FINISHED", "RUNNING", "FAILED", "RUNNING", "KILLED"]
    assert [p.tags.get("stop_reason") for p in sent[1::2]] == ["FINISHED", "FAILED", "STOPPED"]
    assert sent[-1].progress.offset == 60


def test_checkpoints_become_tags_unless_they_failed() -> None:
    good = {"kind": "checkpoint", "time": 1.0, "step": 5, "uri": "s3://b/5"}
    bad = {"kind": "checkpoint", "time": 1.0, "step": 6, "uri": "s3://b/6", "error": "disk full"}
    (parcel,) = parcels(numbered([good, bad]), Progress())
    assert parcel.tags == {"shoal.checkpoint": "s3://b/5", "shoal.checkpoint_step": "5"}


def test_changes_of_the_membership_become_points_at_the_first_step_after_them() -> None:
    points = points_of([change(7.0, 2, "loss", ["w1"], 41, 3, redone=2)])
    assert {p.key: p.value for p in points} == {
        "work/loss_s": 0.56, "work/steps_redone": 2.0,
        "work/detect_s": 0.12, "work/regroup_s": 0.2, "work/state_s": 0.15, "work/resume_s": 0.09,
    }  # fmt: skip
    assert {(p.step, p.time_ms) for p in points} == {(41, 7000)}
    assert not points_of([{"kind": "change", "time": 1.0, "what": "join", "step": 3}])


def test_unsent_counts_what_matters() -> None:
    entries = list(churning_run(1_000.0))
    assert unsent(numbered(entries), Progress()) == 400 + 8 + 2
    *_, last = parcels(numbered(entries), Progress())
    assert unsent(numbered(entries, last.progress.offset // 10), last.progress) == 0


@st.composite
def histories(draw):
    """Ledgers with steps of any length, evaluations, and roll-backs to any earlier step."""
    now, done, entries = 1000.0, 0, []
    for action in draw(st.lists(st.sampled_from(["step"] * 6 + ["evaluate", "resume"]), max_size=40)):
        now += draw(st.sampled_from([0.0, 0.05, 0.4, 3.0]))
        if action == "step":
            done += 1
            entries.append(commit(done, now))
        elif action == "evaluate":
            entries.append(evaluation(done, now))
        elif done:
            done = draw(st.integers(0, done))
            entries.append({"kind": "resume", "time": now, "from_step": done})
    return entries


@settings(max_examples=300, deadline=None)
@given(histories(), st.data())
def test_crashes_anywhere_change_nothing(entries, data) -> None:
    """A sender that dies between sending and noting, and one that sees the ledger grow, send the same set of points."""
    expected = set(points_of(entries))
    assert max(Counter((p.key, p.step) for p in expected).values(), default=1) == 1
    sent: set[Point] = set()
    progress = Progress()
    for _ in range(data.draw(st.integers(0, 6))):
        visible = data.draw(st.integers(progress.offset // 10, len(entries)))
        # The recorder only looks at seconds that are over: nothing of the same second can come any more.
        now = float(int(entries[visible]["time"])) if visible < len(entries) else math.inf
        for parcel in parcels(numbered(entries[:visible], progress.offset // 10), progress, before=now, enough=7):
            sent |= set(parcel.points)
            if data.draw(st.booleans()):
                break
            progress = parcel.progress
    for parcel in parcels(numbered(entries, progress.offset // 10), progress):
        sent |= set(parcel.points)
    assert sent == expected


def test_long_ledgers_come_in_parcels_that_mlflow_takes() -> None:
    entries = [commit(s, 1000 + s * 0.02, total=4000) for s in range(1, 4001)]
    sizes = [len(p.points) for p in parcels(numbered(entries), Progress())]
    assert len(sizes) > 10
    assert max(sizes) < 1200
    offsets = [p.progress.offset for p in parcels(numbered(entries), Progress())]
    assert offsets == sorted(offsets)
    assert offsets[-1] == 40_000


def test_progress_survives_a_round_trip() -> None:
    progress = replace(Progress(), offset=7, best=1.5)
    assert Progress(**{k: getattr(progress, k) for k in Progress.__slots__}) == progress


@pytest.mark.parametrize(
    ("key", "clean"),
    [
        ("val/loss", "val/loss"),
        ("val/loss (%)", "val/loss ___"),
        ("/a//../b", "a/b"),
        ("..", "_"),
        ("x" * 400, "x" * 250),
    ],
)
def test_names_that_mlflow_refuses_are_mended(key: str, clean: str) -> None:
    assert clean_key(key) == clean
