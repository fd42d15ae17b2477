"""Thousands of histories of joins, leaves, losses, hangs and restarts, played through the real decisions.

What must hold at every moment is asserted by the simulated world itself (`simulated_world`): one view at a time, every
step committed once, in order and only when no single loss can take it away, samples contiguous, never parts of two
states put together, nothing thrown away that memory holds, and an end in bounded time. A failure prints its history;
`simulate(random_scenario(seed))` plays it again.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.simulated_run import (
    KINDS,
    NO_LOSS,
    ONE_LOSS,
    History,
    random_scenario,
    simulate,
    spaced_scenario,
)
from tests.support.simulated_world import Event, Scenario

pytestmark = pytest.mark.unit

HISTORIES = 10_000
PARTS = 5
"""The histories come in parts, so that a machine with many cores can play them at the same time."""


@pytest.mark.parametrize("part", range(PARTS))
def test_the_promises_hold_in_random_histories(part: int) -> None:
    histories = [simulate(random_scenario(seed)) for seed in range(part, HISTORIES, PARTS)]
    # The simulation is worth something only if all of this happens in it.
    ends = [h.status for h in histories]
    assert all(ends.count(status) > HISTORIES / PARTS / 50 for status in ("finished", "stopped", "failed"))
    assert sum(len(h.ledger.formed) > 3 for h in histories) > HISTORIES / PARTS / 10
    assert sum(h.ledger.lost > 0 for h in histories) > HISTORIES / PARTS / 50


def test_one_loss_at_a_time_costs_no_committed_step() -> None:
    for seed in range(60):
        scenario = spaced_scenario(seed, (*ONE_LOSS, *NO_LOSS))
        history = simulate(scenario)
        assert history.ledger.lost == 0, told(history)
        # The one in flight is not applied anywhere. Sharded: the snapshots since the last whole one, and their way.
        most = 3 * (scenario.snapshot_every + 3) if scenario.sharded else 0
        assert history.redone <= most, told(history)


def test_what_is_announced_recomputes_nothing_and_takes_one_change() -> None:
    for seed in range(60):
        scenario = spaced_scenario(seed, NO_LOSS)
        history = simulate(scenario)
        assert (history.ledger.lost, history.redone) == (0, 0), told(history)
        if all(event.kind != "everyone leaves" for event in scenario.events):
            assert "for one view more" not in told(history)


@settings(deadline=None, max_examples=150)
@given(
    events=st.lists(
        st.builds(Event, st.integers(0, 24).map(float), st.sampled_from(KINDS), st.integers(0, 20)), max_size=7
    ).map(lambda events: tuple(sorted(events))),
    sharded=st.booleans(),
    least=st.integers(1, 3),
    more=st.integers(0, 2),
    snapshot_every=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_the_promises_hold_whatever_happens_when(
    events: tuple[Event, ...], sharded: bool, least: int, more: int, snapshot_every: int, seed: int
) -> None:
    simulate(
        Scenario(
            seed=seed,
            sharded=sharded,
            least=least,
            most=least + more,
            total_steps=8,
            events=events,
            snapshot_every=snapshot_every,
        )
    )


def told(history: History) -> str:
    return "\n".join(history.log)
