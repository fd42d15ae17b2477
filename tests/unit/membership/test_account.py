"""Commits over several views: nothing that one more loss could take away, nothing twice, nothing forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from shoal.membership.account import Account
from shoal.membership.commits import Tally
from shoal.membership.course import Course
from shoal.membership.leasing import Due, LastDue, Leasing, Plan
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
COURSE = Course(Positions.even(8, 20))
PLAN = Plan(COURSE, 4, evaluate_every=5, checkpoint_every=10, export=False, can_evaluate=True)


def says(member: str, view: int, steps: Iterable[int] = (), kept: Iterable[int] = (), entered: bool = True) -> Reports:
    return Reports(
        member,
        view,
        tuple(StepReport(s, ((2, 1.0),), 1.0, 0.1, 1.0) for s in steps),
        snapshots=tuple(SnapshotKept(s) for s in kept),
        entered=IN if entered else None,
    )


def evaluates(member: str, view: int, step: int) -> Reports:
    return replace(says(member, view), evaluations=(EvaluationReport(step, 1, {"loss": 1.0}, 1.0),))


def ended(reports: Reports, step: int) -> ViewEnd:
    return ViewEnd(reports.member, reports.view, step, broken="reset", reports=reports)


def begin(
    account: Account, number: int, members: str, source: int, *, sharded: bool = False, owes: Due | None = None
) -> None:
    view = View(number, tuple(members))
    due = Leasing(view, PLAN, source + 1, owes=owes).last_due
    account.begin(Tally(view, first_step=source + 1, course=COURSE, sharded=sharded, last_due=due))


def steps(final: object) -> list[int]:
    return [c.step for c in final.commits]  # type: ignore[attr-defined]


def test_steps_beyond_what_all_had_wait_until_the_next_view_has_the_state() -> None:
    account = Account()
    begin(account, 1, "abc", 0)
    assert steps(account.add(says("a", 1, [1, 2]))) == []
    assert steps(account.add(says("b", 1, [1]))) == []
    assert steps(account.add(says("c", 1, [1]))) == [1]
    # c is lost; a had applied step 2, b had not.
    assert steps(account.close([ended(says("a", 1, [2]), 2), ended(says("b", 1), 1)])) == []
    begin(account, 2, "ab", 2)
    assert account.committed == 1
    assert steps(account.add(says("a", 2))) == []
    assert steps(account.add(says("b", 2))) == [2]
    assert account.committed == 2


def test_a_loss_while_the_state_travels_costs_nothing_that_was_committed() -> None:
    account = Account()
    begin(account, 1, "abc", 0)
    for member in "abc":
        account.add(says(member, 1, [1]))
    account.close([ended(says("a", 1, [2]), 2), ended(says("b", 1), 1)])
    begin(account, 2, "ab", 2)
    account.add(says("a", 2))
    account.close([ended(says("b", 2, entered=False), 1)])  # now a is lost, too, and step 2 with it
    begin(account, 3, "b", 1)
    assert account.committed == 1
    assert steps(account.add(says("b", 3))) == []
    assert [(c.step, c.view) for c in account.add(says("b", 3, [2])).commits] == [(2, 3)]


def test_of_several_unsettled_views_each_counts_up_to_where_the_next_went_on() -> None:
    account = Account()
    begin(account, 1, "ab", 0, sharded=True)
    account.add(says("a", 1, [1, 2], kept=[1]))
    assert steps(account.add(says("b", 1, [1], kept=[1]))) == [1]
    account.close([ended(says("a", 1, [2, 3]), 3)])
    begin(account, 2, "ac", 3, sharded=True)
    # Both did step 4, but its snapshots never reached anybody before c was lost; a's copy of c's came late.
    account.close([ended(says("a", 2, [4]), 4)])
    begin(account, 3, "ad", 4, sharded=True)
    account.add(says("a", 3, [5], kept=[5]))
    final = account.add(says("d", 3, [5], kept=[5]))
    assert [(c.step, c.view) for c in final.commits] == [(2, 1), (3, 1), (4, 2), (5, 3)]


def test_a_view_that_came_to_nothing_is_forgotten() -> None:
    account = Account()
    begin(account, 1, "ab", 0)
    account.add(says("a", 1, [1, 2]))
    account.add(says("b", 1, [1]))
    account.close([ended(says("a", 1, [2]), 2), ended(says("b", 1), 1)])
    begin(account, 2, "ab", 2, owes=Due(evaluate=True))
    # The owed evaluation was said by both, but b never took over the state, and a is lost before it could.
    account.add(evaluates("a", 2, 2))
    account.close([ended(replace(evaluates("b", 2, 2), entered=None), 1)])
    begin(account, 3, "b", 1)
    final = account.add(says("b", 3, [2]))
    assert [(c.step, c.view) for c in final.commits] == [(2, 3)]
    assert final.evaluations == ()


def test_a_view_that_came_to_nothing_does_not_count_between_others() -> None:
    account = Account()
    begin(account, 1, "ab", 0, sharded=True)
    account.close([ended(says("a", 1, range(1, 8)), 7)])
    begin(account, 2, "ac", 7, sharded=True)
    account.close([])  # a is lost with step 7; of step 6 there is enough
    begin(account, 3, "bd", 6, sharded=True)
    account.close([ended(says("b", 3, [7, 8]), 8)])
    begin(account, 4, "be", 8, sharded=True)
    account.add(says("b", 4, kept=[8]))
    final = account.add(says("e", 4, kept=[8]))
    assert [(c.step, c.view) for c in final.commits] == [*((s, 1) for s in range(1, 7)), (7, 3), (8, 3)]


def test_an_evaluation_that_is_forgotten_with_its_view_is_owed_again() -> None:
    account = Account()
    begin(account, 1, "ab", 0, sharded=True)
    account.close([ended(says("a", 1, range(1, 6)), 5)])
    assert account.owes(5) == Due(evaluate=True)
    begin(account, 2, "ab", 5, sharded=True, owes=account.owes(5))
    account.add(evaluates("a", 2, 5))
    account.add(evaluates("b", 2, 5))
    account.close([])  # before the first snapshot of this view was anywhere
    assert account.owes(5) == Due(evaluate=True)


def test_on_a_rollback_the_steps_are_committed_again() -> None:
    account = Account()
    begin(account, 1, "a", 0)
    assert steps(account.add(says("a", 1, [1, 2, 3]))) == [1, 2, 3]
    account.close([])
    begin(account, 2, "b", 1)
    assert account.committed == 1
    assert steps(account.add(says("b", 2, [2, 3]))) == [2, 3]


def test_what_was_due_and_did_not_become_final_is_owed() -> None:
    account = Account()
    begin(account, 1, "ab", 0)
    account.add(says("a", 1, range(1, 8)))
    account.add(says("b", 1, range(1, 7)))
    account.add(evaluates("a", 1, 5))
    account.close([ended(says("a", 1), 7)])
    assert account.owes(7) == Due(evaluate=True, checkpoint=False)


def test_what_is_whole_and_only_waits_for_the_next_view_is_not_owed() -> None:
    account = Account()
    begin(account, 1, "ab", 0)
    account.add(says("a", 1, range(1, 6)))
    account.add(says("b", 1, range(1, 5)))
    account.add(evaluates("b", 1, 5))
    account.close([ended(replace(evaluates("a", 1, 5), steps=says("a", 1, [5]).steps), 5)])
    assert account.owes(5) == Due()
    begin(account, 2, "a", 5)
    final = account.add(says("a", 2))
    assert ([c.step for c in final.commits], [e.step for e in final.evaluations]) == ([5], [5])
    account.close([])
    assert account.owes(5) == Due()


def test_what_was_owed_stays_owed_until_it_is_done() -> None:
    account = Account()
    begin(account, 1, "a", 12, owes=Due(evaluate=True, checkpoint=True))
    account.add(replace(says("a", 1, [13]), written=(ShardWritten(12),)))
    account.close([])
    assert account.owes(13) == Due(evaluate=True, checkpoint=False)
    begin(account, 2, "a", 13, owes=account.owes(13))
    account.add(evaluates("a", 2, 13))
    account.close([])
    assert account.owes(13) == Due()


def test_words_from_other_views_change_nothing() -> None:
    account = Account()
    assert steps(account.add(says("a", 1, [1]))) == []
    begin(account, 2, "a", 0)
    assert steps(account.add(says("a", 1, [1]))) == []
    assert account.committed == 0


def test_a_lost_coordinator_is_followed_by_one_that_knows_the_ledger() -> None:
    account = Account(5)
    tallies = [
        Tally(View(number, ("a", "b")), first_step=source + 1, course=COURSE, last_due=lambda _: LastDue())
        for number, source in ((1, 0), (2, 9), (3, 2), (4, 6))  # view 2 was rolled back
    ]
    over = [ended(says("a", 3, range(3, 7)), 6), ended(says("b", 2, range(10, 12)), 11)]
    assert steps(account.adopt(tallies, over)) == []
    assert account.committed == 5
    account.add(says("a", 4, [7]))
    assert [(c.step, c.view) for c in account.add(says("b", 4)).commits] == [(6, 3)]
    assert [(c.step, c.view) for c in account.add(says("b", 4, [7])).commits] == [(7, 4)]


def test_a_successor_commits_what_nobody_can_tell_of_without_numbers() -> None:
    account = Account(5)
    view = View(3, ("a", "b"))
    account.adopt([Tally(view, first_step=3, course=COURSE), Tally(View(4, ("c",)), first_step=7, course=COURSE)], [])
    assert [(c.step, c.view, c.covered) for c in account.add(says("c", 4)).commits] == [(6, 3, 0)]
    assert account.committed == 6


def test_a_word_that_went_with_its_member_and_the_coordinator_that_had_heard_it_is_owed_again() -> None:
    def tallies() -> list[Tally]:
        """View 2 was not told to evaluate step 5: all parts of that were there when it was formed."""
        formed = ((View(1, ("a", "b")), 0), (View(2, ("a",)), 5))
        return [
            Tally(v, first_step=s + 1, course=COURSE, last_due=Leasing(v, PLAN, s + 1, owes=Due()).last_due)
            for v, s in formed
        ]

    for words, owed in (((), Due(evaluate=True)), (("a", "b"), Due())):
        account = Account(4)
        account.adopt(tallies(), [ended(evaluates(m, 1, 5), 5) for m in words])
        final = account.add(says("a", 2, [6]))
        assert steps(final) == [5, 6]
        assert [e.step for e in final.evaluations] == ([5] if words else [])
        account.close([])
        assert account.owes(6) == owed
        begin(account, 3, "a", 6, owes=account.owes(6))
        account.add(evaluates("a", 3, 6))
        account.close([])
        assert account.owes(6) == Due()
