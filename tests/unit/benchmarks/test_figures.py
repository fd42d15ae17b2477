"""All figures from hand-made logs."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.churn.figures import figures, goodput, ideal, recoveries, repeated

pytestmark = pytest.mark.unit

BATCH = 10


def log(*events: tuple[float, str, dict[str, Any]], steps: int = 100, done: int | None = None) -> list[dict[str, Any]]:
    """A run that stands with two workers at second 100."""
    own = [{"t": t, "kind": kind, **fields} for t, kind, fields in events]
    last = max((e["t"] for e in own), default=100.0)
    return [
        {"t": 90.0, "kind": "run", "steps": steps, "batch": BATCH},
        {"t": 100.0, "kind": "ready", "workers": 2},
        *sorted(own, key=lambda e: e["t"]),
        {"t": last, "kind": "end", "steps": steps if done is None else done, "digest": "d"},
    ]


def steps(*at: tuple[float, int], view: str = "1", workers: int = 2) -> list[tuple[float, str, dict[str, Any]]]:
    return [(t, "step", {"step": s, "view": view, "workers": workers}) for t, s in at]


SPEEDS = {1: 10.0, 2: 20.0, 3: 30.0}


def test_a_run_that_loses_nothing_has_a_goodput_of_one() -> None:
    events = log(*steps(*[(100 + 0.5 * i, i) for i in range(1, 21)]))
    assert goodput(events, SPEEDS, 10) == pytest.approx(1.0)


def test_what_could_have_been_done_follows_the_places() -> None:
    events = log((104, "join", {"slot": "c", "at": 4.0}), (106.5, "kill", {"slot": "a", "at": 6.0}))
    assert ideal(events, SPEEDS, 10) == pytest.approx(4 * 20 + 2 * 30 + 4 * 20)
    assert ideal(events, SPEEDS, 5) == pytest.approx(4 * 20 + 1 * 30)


def test_a_step_that_was_thrown_away_is_not_useful_until_it_is_done_again() -> None:
    events = log(*steps((101, 1), (102, 2), (103, 3)), *steps((108, 2), (115, 3), view="2"))
    assert goodput(events, SPEEDS, 10) == pytest.approx(2 * BATCH / 200)
    assert repeated(events, BATCH) == 2 * BATCH


def test_steps_before_the_run_stands_do_not_count() -> None:
    events = log(*steps((99, 1), (101, 2)))
    assert goodput(events, SPEEDS, 10) == pytest.approx(BATCH / 200)


def test_a_run_that_is_over_before_the_trace_is_measured_until_then() -> None:
    events = log(*steps((101, 1), (102, 2)), steps=2)
    assert goodput(events, SPEEDS, 10) == pytest.approx(2 * BATCH / 40)


def test_a_kill_costs_until_the_next_step_of_another_view() -> None:
    """A step of the old view that is told late is none of the new one."""
    events = log(
        *steps((101, 1), (102, 2), (103.1, 3)),
        (103, "kill", {"slot": "a", "at": 3.0}),
        *steps((105, 4), (105.5, 5), (106, 6), view="2", workers=1),
    )
    (found,) = recoveries(events)
    assert (found.what, found.parts) == ("kill", {})
    assert found.next_step_s == pytest.approx(2.0)
    assert found.idle_s == pytest.approx(105 - 103.1 - 0.5)


def test_what_a_system_says_of_itself_is_believed() -> None:
    said = {"what": "join", "detect_s": 0.0, "regroup_s": 0.1, "state_s": 0.2, "resume_s": 0.3, "idle_s": 0.25}
    events = log(
        *steps((101, 1)), (102, "join", {"slot": "c", "at": 2.0}), *steps((104, 2), view="2"), (104, "parts", said)
    )
    (found,) = recoveries(events)
    assert found.idle_s == 0.25
    assert found.parts == {"detect": 0.0, "regroup": 0.1, "state": 0.2, "resume": 0.3}


def test_a_change_that_the_next_one_overtakes_is_left_out() -> None:
    events = log(
        *steps((101, 1)),
        (102, "kill", {"slot": "a", "at": 2.0}),
        (103, "join", {"slot": "c", "at": 3.0}),
        *steps((105, 2), view="2"),
    )
    assert [r.what for r in recoveries(events)] == ["join"]


def test_lost_and_repeated_samples() -> None:
    """Step 3 of 4 was never done, step 2 twice, and 20 samples more were thrown away without a line of their own."""
    events = log(*steps((101, 1), (102, 2), (103, 2), (104, 4)), (104, "redone", {"samples": 20}), steps=4)
    found = figures(events)
    assert (found.lost, found.repeated) == (BATCH, BATCH + 20)


def test_a_run_that_was_broken_off_has_not_lost_what_was_to_come() -> None:
    assert figures(log(*steps((101, 1), (102, 3)), steps=5, done=3)).lost == BATCH


def test_speed_is_by_the_median_step_of_a_calm_run_only() -> None:
    calm = steps(*[(100 + 0.5 * i, i) for i in range(1, 21)], (115, 21))
    assert figures(log(*calm)).speed == pytest.approx(BATCH / 0.5)
    assert figures(log(*calm, (101, "kill", {"slot": "a", "at": 1.0}))).speed is None


def test_the_peak_of_memory_is_that_of_the_time_that_is_measured() -> None:
    events = log((95, "memory", {"bytes": 9, "processes": 2}), (101, "memory", {"bytes": 7, "processes": 2}))
    assert figures(events).peak_bytes == 7


def test_a_log_that_is_not_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="the log has 0 events 'end', and needs one"):
        figures(log()[:-1])
