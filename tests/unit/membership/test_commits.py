"""A step is committed once, in order, when it cannot be lost any more, whatever the order and number of the reports."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.digests import step_digest
from shoal.membership.commits import Commit, Tally
from shoal.membership.course import Course
from shoal.membership.leasing import LastDue
from shoal.membership.messages import (
    Entered,
    EvaluationReport,
    Reports,
    ShardWritten,
    SnapshotKept,
    StepReport,
    ViewEnd,
)
from shoal.membership.view import View
from shoal.positions import Positions

pytestmark = pytest.mark.unit

IN = Entered(0.1, 0.1)
VIEW = View(1, ("a", "b"))
COURSE = Course(Positions.even(8, 1000))


def report(step: int, losses: tuple[tuple[int, float], ...] = ((1, 1.0),), step_s: float = 0.1) -> StepReport:
    return StepReport(step=step, losses=losses, grad_norm=1.0, lr=0.1, step_s=step_s, samples=f"{step:016x}")


def says(member: str, *steps: int, kept: tuple[int, ...] = (), view: View = VIEW) -> Reports:
    return Reports(
        member,
        view.number,
        steps=tuple(report(s) for s in steps),
        snapshots=tuple(SnapshotKept(s) for s in kept),
        entered=IN,
    )


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 5), steps=st.integers(1, 12))
def test_commits_come_once_and_in_order_under_any_interleaving(data: st.DataObject, size: int, steps: int) -> None:
    view = View(1, tuple(f"w{i}" for i in range(size)))
    tally = Tally(view, first_step=4, course=COURSE)
    turns = data.draw(st.permutations([m for m in view.members for _ in range(steps)]))
    at = dict.fromkeys(view.members, 3)
    commits: list[Commit] = []
    for member in turns:
        at[member] += 1
        # Everything that is not known to be committed is said again.
        said = range(data.draw(st.integers(4, at[member])), at[member] + 1)
        commits += tally.add(says(member, *said, view=view)).commits
        # Never more than what everybody has done.
        assert tally.committed == min(at.values())
        assert tally.reported == max(at.values())
    assert [c.step for c in commits] == list(range(4, 4 + steps))
    assert [c.samples for c in commits] == [((s - 1) * 8, s * 8) for s in range(4, 4 + steps)]


@settings(deadline=None)
@given(data=st.data(), size=st.integers(1, 4), steps=st.integers(1, 10))
def test_a_sharded_step_is_committed_when_one_snapshot_is_with_everybodys_buddy(
    data: st.DataObject, size: int, steps: int
) -> None:
    view = View(1, tuple(f"w{i}" for i in range(size)))
    tally = Tally(view, first_step=1, course=COURSE, sharded=True)
    done = dict.fromkeys(view.members, 0)
    kept: dict[str, set[int]] = {m: set() for m in view.members}
    commits: list[Commit] = []
    for _ in range(data.draw(st.integers(0, 30))):
        member = data.draw(st.sampled_from(view.members))
        done[member] = min(steps, done[member] + data.draw(st.integers(0, 2)))
        kept[member] |= set(data.draw(st.lists(st.integers(1, max(1, done[member])), max_size=2)))
        kept[member] = {s for s in kept[member] if s <= done[member]}
        said = Reports(
            member,
            1,
            steps=tuple(report(s) for s in range(1, done[member] + 1)),
            snapshots=tuple(SnapshotKept(s) for s in sorted(kept[member])),
        )
        commits += tally.add(said).commits
        whole = max(set.intersection(*kept.values()), default=0)
        assert tally.stable == whole
        assert tally.committed == min(whole, *done.values())
    assert [c.step for c in commits] == list(range(1, len(commits) + 1))


def test_latest_snapshots_of_different_steps_make_no_whole_state() -> None:
    tally = Tally(VIEW, first_step=1, course=COURSE, sharded=True)
    assert tally.add(says("a", 1, 2, 3, kept=(3,))).commits == ()
    # Of step 3 one part is copied, of step 1 the other: no loss may be afforded yet.
    assert tally.add(says("b", 1, 2, 3, kept=(1,))).commits == ()
    assert not tally.safe
    assert [c.step for c in tally.add(says("b", kept=(3,))).commits] == [1, 2, 3]


def test_nothing_is_final_before_all_have_taken_over_the_state() -> None:
    tally = Tally(VIEW, first_step=6, course=COURSE, last_due=lambda _: LastDue(evaluate=5))
    owed = EvaluationReport(5, 1, {"loss": 1.0}, 1.0)
    assert tally.add(Reports("a", 1, evaluations=(owed,), entered=IN)).evaluations == ()
    assert tally.add(Reports("b", 1, evaluations=(owed,))).evaluations == ()
    assert [e.step for e in tally.add(Reports("b", 1, entered=IN)).evaluations] == [5]


def test_the_loss_is_the_mean_over_virtual_shards_and_the_slowest_member_times_the_step() -> None:
    tally = Tally(View(2, ("a", "b")), first_step=1, course=COURSE)
    b = Reports("b", 2, steps=(report(1, ((1, 5.0), (2, 2.0)), step_s=0.5),))
    assert tally.add(b).commits == ()
    (commit,) = tally.add(Reports("a", 2, steps=(report(1, ((1, 3.0),), step_s=0.2),))).commits
    assert commit.loss == (3.0 + 5.0 + 2 * 2.0) / 4
    assert (commit.step_s, commit.workers, commit.view, commit.covered) == (0.5, 2, 2, 4)


def test_one_word_of_all_losses_is_enough() -> None:
    of_all = replace(report(1, ((1, 4.0), (1, 2.0))), whole=True, samples="ab" * 16)
    tally = Tally(VIEW, first_step=1, course=COURSE)
    tally.add(Reports("a", 1, steps=(of_all,)))
    (commit,) = tally.add(Reports("b", 1, steps=(of_all,))).commits
    assert (commit.loss, commit.covered) == (3.0, 2)
    broken = Tally(VIEW, first_step=1, course=COURSE)
    (settled,) = broken.settle([ViewEnd("b", 1, 1, reports=Reports("b", 1, steps=(of_all,)))], 1).commits
    assert (settled.loss, settled.covered) == (3.0, 2)
    assert commit.samples_digest == settled.samples_digest == step_digest(["ab" * 8, "ab" * 8])


def test_the_samples_digest_is_that_of_all_parts_in_shard_order_or_none() -> None:
    one, two = replace(report(1), samples="aa"), replace(report(1), samples="bb")
    digests = []
    for order in (("a", "b"), ("b", "a")):
        tally = Tally(VIEW, first_step=1, course=COURSE)
        said = {"a": one, "b": two}
        digests.append([c.samples_digest for m in order for c in tally.add(Reports(m, 1, steps=(said[m],))).commits])
    assert digests[0] == digests[1]
    together = Tally(View(1, ("c",)), first_step=1, course=COURSE)
    (whole,) = together.add(Reports("c", 1, steps=(replace(report(1), samples="aabb"),))).commits
    assert [whole.samples_digest] == digests[0]
    partly = Tally(VIEW, first_step=1, course=COURSE)
    partly.add(Reports("a", 1, steps=(one,)))
    (commit,) = partly.add(Reports("b", 1, steps=(replace(two, samples=""),))).commits
    assert commit.samples_digest == ""


def test_an_evaluation_is_the_mean_over_samples_and_waits_for_its_step() -> None:
    tally = Tally(VIEW, first_step=5, course=COURSE)
    a, b = EvaluationReport(5, 30, {"loss": 30.0}, 1.0), EvaluationReport(5, 10, {"loss": 50.0}, 2.0)
    tally.add(Reports("a", 1, steps=(report(5),), evaluations=(a,)))
    assert tally.add(Reports("b", 1, evaluations=(b,))).evaluations == ()
    final = tally.add(Reports("b", 1, steps=(report(5),), evaluations=(b,)))
    assert [(e.step, e.means, e.seconds) for e in final.evaluations] == [(5, {"loss": 2.0}, 2.0)]
    assert tally.add(Reports("b", 1, evaluations=(b,))).evaluations == ()


def test_a_checkpoint_is_complete_when_every_part_is_there_and_its_step_is_stable() -> None:
    tally = Tally(VIEW, first_step=5, course=COURSE, sharded=True)
    late, early = ShardWritten(step=5, seconds=1.0), ShardWritten(step=5, seconds=2.0, error="disk full")
    tally.add(replace(says("b", 5, kept=(5,)), written=(early,)))
    assert tally.add(replace(says("a", 5), written=(late,))).written == ()
    (written,) = tally.add(replace(says("a", kept=(5,)), written=(late,))).written
    assert (written.step, written.parts) == (5, (late, early))


def test_after_a_break_what_the_survivors_did_is_final_with_what_they_could_say() -> None:
    tally = Tally(VIEW, first_step=1, course=COURSE)
    tally.add(says("a", 1))
    tally.add(says("b", 1))
    end = ViewEnd("a", 1, 3, broken="reset", reports=says("a", 1, 2, 3))
    commits = tally.settle([end], 3).commits
    assert [(c.step, c.covered, c.samples_digest) for c in commits] == [(2, 1, ""), (3, 1, "")]
    assert tally.settle([end], 3).commits == ()


def test_a_step_of_which_nobody_is_left_to_speak_is_committed_without_numbers() -> None:
    tally = Tally(VIEW, first_step=1, course=COURSE)
    (commit,) = tally.settle([], 1).commits
    assert (commit.step, commit.covered) == (1, 0)
    assert math.isnan(commit.loss)


def test_a_tally_that_is_taken_over_tells_only_what_the_ledger_lacks() -> None:
    tally = Tally(VIEW, first_step=1, course=COURSE)
    tally.resume_at(2, evaluated=(1,))
    one, two = (EvaluationReport(s, 1, {"loss": 1.0}, 1.0) for s in (1, 2))
    tally.add(replace(says("a", 1, 2, 3), evaluations=(one, two)))
    final = tally.add(replace(says("b", 1, 2, 3), evaluations=(one, two)))
    assert [c.step for c in final.commits] == [3]
    assert [e.step for e in final.evaluations] == [2]


def test_a_report_of_a_stranger_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="w9"):
        Tally(View(1, ("a",)), first_step=1, course=COURSE).add(says("w9", 1))
