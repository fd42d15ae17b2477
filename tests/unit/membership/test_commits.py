"""A step is committed once, in order, when all members have applied it, whatever the order of their reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.membership.commits import Tally
from shoal.membership.messages import EvaluationReport, ShardWritten, StepReport
from shoal.membership.view import View

pytestmark = pytest.mark.unit


def report(step: int, losses: tuple[tuple[int, float], ...] = ((1, 1.0),), step_s: float = 0.1) -> StepReport:
    return StepReport(step=step, losses=losses, grad_norm=1.0, lr=0.1, step_s=step_s)


@given(data=st.data(), size=st.integers(1, 5), steps=st.integers(1, 12))
def test_commits_come_once_and_in_order_under_any_interleaving(data: st.DataObject, size: int, steps: int) -> None:
    view = View(1, tuple(f"w{i}" for i in range(size)))
    tally = Tally(view, first_step=4, batch_size=8)
    turns = data.draw(st.permutations([m for m in view.members for _ in range(steps)]))
    at = dict.fromkeys(view.members, 3)
    commits = []
    for member in turns:
        at[member] += 1
        commits += tally.step(member, report(at[member]))
        # Never more than what everybody has done.
        assert tally.committed == min(at.values())
        assert tally.reported == max(at.values())
    assert [c.step for c in commits] == list(range(4, 4 + steps))
    assert [c.samples for c in commits] == [((s - 1) * 8, s * 8) for s in range(4, 4 + steps)]


def test_the_loss_is_the_mean_over_virtual_shards_and_the_slowest_member_times_the_step() -> None:
    tally = Tally(View(2, ("a", "b")), first_step=1, batch_size=8)
    assert tally.step("b", report(1, ((1, 5.0), (2, 2.0)), step_s=0.5)) == []
    (commit,) = tally.step("a", report(1, ((1, 3.0),), step_s=0.2))
    assert commit.loss == (3.0 + 5.0 + 2 * 2.0) / 4
    assert (commit.step_s, commit.workers, commit.view) == (0.5, 2, 2)


def test_an_evaluation_is_the_mean_over_samples_not_over_members() -> None:
    tally = Tally(View(1, ("a", "b")), first_step=1, batch_size=8)
    assert tally.evaluation("a", EvaluationReport(5, 30, {"loss": 30.0}, 1.0)) == []
    assert tally.evaluation("b", EvaluationReport(5, 10, {"loss": 50.0}, 2.0)) == [(5, {"loss": 2.0}, 2.0)]


def test_a_checkpoint_is_complete_when_every_part_is_there_in_rank_order() -> None:
    tally = Tally(View(1, ("a", "b")), first_step=1, batch_size=8)
    late, early = ShardWritten(step=5, seconds=1.0), ShardWritten(step=5, seconds=2.0, error="disk full")
    assert tally.written("b", early) == []
    assert tally.written("a", late) == [(5, [late, early])]


def test_a_report_of_a_stranger_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="w9"):
        Tally(View(1, ("a",)), first_step=1, batch_size=8).step("w9", report(1))
