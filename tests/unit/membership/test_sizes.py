"""Batches whose sizes are decided on the way: the same decisions whenever they are made, and however often."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.audit.chain import Chain
from shoal.job.growth import Milestones
from shoal.membership.course import Course, Outlook, ReadCourse, SpentCourse
from shoal.membership.leasing import Leasing, Plan
from shoal.membership.sizes import Decision, MilestoneSizes, NoiseRule, NoiseSizes
from shoal.membership.view import View
from shoal.optim.noise import Measured

pytestmark = pytest.mark.unit

RULE = NoiseRule(every=5, most=64, factor=2, threshold=1.0)
ENDLESS = 1 << 32


def found(scale: float) -> Measured:
    """A step in which the noise scale is `scale`."""
    return Measured(2.0, 1.0 + scale / 2, 16.0, 1.0 + scale / 16)


def noise_sizes(decided: Any = (), *, after: int = 0, rule: NoiseRule = RULE) -> NoiseSizes:
    return NoiseSizes(rule, 8, ENDLESS, decided, after=after)


def settle(sizes: NoiseSizes, until: int) -> int:
    """The last step that can be settled, `until` at most."""
    return next((s - 1 for s in range(1, until + 1) if not sizes.settle(s, 0.0)), until)


def test_a_block_is_decided_by_the_last_but_one() -> None:
    sizes = noise_sizes()
    assert settle(sizes, 99) == 10
    for step in range(1, 5):
        sizes.note(step, found(20.0))
    assert settle(sizes, 99) == 10, "step 5 is missing"
    sizes.note(5, found(20.0))
    assert settle(sizes, 99) == 15
    assert sizes.decisions() == (Decision(11, 16, "noise scale 20: 16 is at most 1 times that"),)
    assert sizes.decisions() == ()
    assert [sizes.batch(s) for s in (1, 10, 11, 15)] == [8, 8, 16, 16]
    assert sizes.positions.of(11) == (80, 96)
    for step in range(6, 16):
        sizes.note(step, None if step < 11 else found(500.0))
    assert settle(sizes, 99) == 25
    first, second = sizes.decisions()
    assert (first.step, first.size, first.why) == (16, 16, "the noise scale was not measured")
    assert (second.step, second.size) == (21, 32)
    assert sizes.positions.spans == ((1, 8), (11, 16), (21, 32))


def test_it_grows_to_the_most_and_never_shrinks() -> None:
    assert RULE.next_size(32, 64.0)[0] == 64
    assert RULE.next_size(64, 1e9) == (64, "noise scale 1e+09; 128 would be more than ByNoise.most=64")
    assert RULE.next_size(32, float("inf"))[0] == 64, "more noise than can be measured"
    assert RULE.next_size(32, 0.0)[0] == 32
    assert NoiseRule(every=1, most=64, factor=4, threshold=0.5).next_size(8, 63.9)[0] == 8
    assert NoiseRule(every=1, most=64, factor=4, threshold=0.5).next_size(8, 64.0)[0] == 32


def test_a_run_that_begins_with_anothers_checkpoint_decides_about_its_own_steps() -> None:
    sizes = noise_sizes([(1, 8), (11, 16)], after=18)
    assert settle(sizes, 99) == 25, "of block 4 the run sees the last two steps itself, and nothing of block 3"
    assert [(d.step, d.size) for d in sizes.decisions()] == [(21, 16)]
    for step in range(19, 26):
        sizes.note(step, found(200.0))
    assert settle(sizes, 99) == 35
    assert [(d.step, d.size) for d in sizes.decisions()] == [(26, 32), (31, 64)]


@settings(deadline=None)
@given(
    scales=st.lists(st.none() | st.floats(0.1, 500.0), min_size=40, max_size=40),
    restarts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 20)), max_size=4),
    ahead=st.integers(1, 12),
)
def test_neither_restarts_nor_rollbacks_change_a_decision(
    scales: list[float | None], restarts: list[tuple[int, int]], ahead: int
) -> None:
    """`restarts`: at this committed step the coordinator is lost, and the run goes on some steps before."""

    def history(lost: list[tuple[int, int]]) -> dict[int, int]:
        written: list[Decision] = []
        entries: list[tuple[int, Measured | None]] = []
        sizes, committed, lost = noise_sizes(), 0, list(lost)
        while committed < 40:
            settled = settle(sizes, committed + ahead)
            assert settled > committed, "somebody can always go on"
            written += sizes.decisions()
            committed += 1
            scale = scales[committed - 1]
            entries.append((committed, None if scale is None else found(scale)))
            sizes.note(*entries[-1])
            if any(at == committed for at, _ in lost):
                back = max(0, committed - max(n for at, n in lost if at == committed))
                lost = [(at, n) for at, n in lost if at != committed]
                entries, committed = entries[:back], back
                sizes = noise_sizes([(d.step, d.size) for d in written], after=back)
                for entry in entries:
                    sizes.note(*entry)
        assert len({d.step for d in written}) == len(written), "each is made once"
        return {d.step: d.size for d in written if d.step <= 40}

    assert history(restarts) == history([])


def test_a_budget_of_samples_ends_with_the_step_that_reaches_it() -> None:
    sizes = noise_sizes()
    course = ReadCourse(sizes, 200, after=0)
    assert course.expected == 25
    assert course.decide(99) == 10
    assert course.last is None
    for step in range(1, 11):
        sizes.note(step, found(40.0))
    assert course.decide(99) == 17  # 10 x 8, 5 x 16, then 2 x 32 reach 200
    assert (course.last, course.expected, course.progress(17)) == (17, 17, 1.0)
    assert course.progress(10) == 0.4
    assert course.batch(17) == 32
    again = ReadCourse(noise_sizes([(11, 16), (16, 32)], after=17), 200, after=17)
    assert again.last == 17


def test_milestones_along_a_budget_of_seconds() -> None:
    growth = Milestones(((0.5, 32),))

    def made(decided: Any = (), told: dict[int, float] | None = None) -> SpentCourse:
        sizes = MilestoneSizes(lambda p: growth.size_at(16, p), 16, ENDLESS, decided)
        return SpentCourse(sizes, 10.0, after=0, decided=told or {})

    course = made()
    course.outlook = Outlook(spent=0.0, step=0, per_step=2.0)
    assert course.decide(99) == 5
    assert [course.batch(s) for s in range(1, 6)] == [16, 16, 32, 32, 32]
    assert [(d.step, d.size) for d in course.sizes.decisions()] == [(3, 32)]
    replayed = made([(3, 32)], {s: course.progress(s) for s in range(1, 6)})
    assert replayed.decide(99) == 5
    assert replayed.positions.spans == course.positions.spans
    assert replayed.sizes.decisions() == ()


def test_sharded_members_make_a_snapshot_where_a_decision_waits_for_it() -> None:
    course = Course(NoiseSizes(RULE, 8, 40))
    plan = Plan(course, 4, evaluate_every=None, checkpoint_every=None, export=False, can_evaluate=False, snapshot=True)
    leasing = Leasing(View(1, ("a",)), plan, 1)
    leasing.extend(40, snapshot_every=100)
    given_ = leasing.take("a")
    assert [lease.step for lease in given_] == list(range(1, 11))
    assert [lease.step for lease in given_ if lease.snapshot] == [1, 5, 10]
    assert {lease.shard_size for lease in given_} == {2}


def test_the_audit_reads_the_decisions() -> None:
    def commit(step: int, low: int, high: int) -> dict[str, Any]:
        return {"kind": "commit", "step": step, "view": 1, "samples": [low, high]}

    entries: list[dict[str, Any]] = [
        {"kind": "start", "samples": 100, "positions": [[1, 8]], "total_steps": None},
        {"kind": "view", "number": 1, "members": [], "first_step": 1},
        commit(1, 0, 8),
        {"kind": "batch", "step": 3, "size": 16, "why": ""},
        commit(2, 8, 16),
        commit(3, 16, 32),
        {"kind": "batch", "step": 5, "size": 16, "why": ""},
    ]
    chain = Chain().add(entries)
    assert chain.positions is not None
    assert chain.positions.spans == ((1, 8), (3, 16))
    assert chain.faults() == []
    late = Chain().add([*entries, {"kind": "batch", "step": 3, "size": 32, "why": ""}])
    assert [f.kind for f in late.faults()] == ["batch"]
    wrong = Chain().add([*entries, commit(4, 32, 40)])
    assert [f.kind for f in wrong.faults()] == ["samples"]
