"""What the ledger alone proves: honest histories are clean, and no single lie passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.audit.chain import Chain, Fault
from shoal.audit.epochs import epochs_of
from tests.support.ledgers import churning_run

pytestmark = pytest.mark.unit

B, N = 4, 10
Entry = dict[str, Any]


def commit(step: int, view: int = 1, **more: Any) -> Entry:
    samples = [(step - 1) * B, step * B]
    return {
        "kind": "commit",
        "time": 0.0,
        "step": step,
        "view": view,
        "samples": samples,
        "epoch": step * B / N,
        **more,
    }


def view(number: int, first_step: int, size: int = 2) -> Entry:
    return {
        "kind": "view",
        "number": number,
        "first_step": first_step,
        "members": [{"id": f"w{i}"} for i in range(size)],
    }


def resume(step: int) -> Entry:
    return {"kind": "resume", "from_step": step, "reason": "all were lost"}


START: Entry = {"kind": "start", "samples": N, "positions": [[1, B]], "total_steps": 7}
END: Entry = {"kind": "end", "status": "finished"}


def told(*entries: Entry, total: int | None = None) -> list[Fault]:
    forked = entries[0].get("first_step", 1) > 1
    return Chain(forked=forked).add([START, *entries]).faults(total)


def test_a_plain_run_is_clean() -> None:
    chain = Chain().add([START, view(1, 1), *(commit(s) for s in range(1, 8)), END])
    assert chain.faults(total_steps=7) == []
    assert (chain.first, chain.last, chain.views, chain.sizes) == (1, 7, 1, {2})
    epochs = epochs_of(chain)
    assert epochs is not None
    assert (epochs.complete, epochs.current, epochs.to_come) == (2, 3, (8, 10))


def test_a_run_with_churn_is_clean_and_says_what_was_run_again() -> None:
    chain = Chain().add(churning_run(0.0))
    assert chain.faults(400) == []
    assert [(b.first, b.last, b.reason) for b in chain.rolled_back] == [(177, 179, "peers' copies")]
    assert (chain.last, chain.views, chain.sizes) == (400, 5, {2, 3, 4})
    assert chain.changes == {"join": 2, "leave": 1, "loss": 1}


def test_the_last_steps_of_a_view_that_broke_count_when_the_next_one_holds_the_state() -> None:
    entries = [START, view(1, 1), commit(1), view(2, 4), view(3, 3, 1), commit(2), commit(3, 3), commit(4, 3)]
    assert Chain().add(entries).faults() == []


def test_a_run_without_commits_yet() -> None:
    chain = Chain().add([START, view(1, 1)])
    assert chain.faults(10) == []
    assert chain.last == 0
    assert epochs_of(chain) is None


def test_ledgers_of_earlier_releases_say_enough() -> None:
    """No sizes in `start`, no digests; views begin with 1 again in each process, and `resume` follows the view."""
    old = [{"kind": "start"}, view(1, 1), commit(1), commit(2), {"kind": "loss"}, view(2, 2), resume(1), commit(2, 2)]
    old += [
        {"kind": "end", "status": "stopped"},
        view(1, 3),
        resume(2),
        commit(3, 1),
        view(2, 4),
        resume(3),
        commit(4, 2),
    ]
    chain = Chain().add(old)
    assert chain.faults() == []
    assert chain.positions is not None
    assert (chain.positions.spans, chain.epoch_samples, chain.last) == (((1, B),), N, 4)


def test_steps_may_read_less_from_one_on() -> None:
    start = {**START, "positions": [[1, 2 * B], [3, B]]}
    ranges = [(0, 8), (8, 16), (16, 20), (20, 24)]
    entries = [start, view(1, 1), *({**commit(s), "samples": list(r)} for s, r in enumerate(ranges, 1))]
    chain = Chain().add(entries)
    assert chain.faults(4) == []
    assert [chain.range_of(s) for s in range(1, 5)] == ranges
    assert chain.coverage() == ([], [])
    entries[-1] = commit(4)  # as if all had read B
    assert [f.kind for f in Chain().add(entries).faults(4)] == ["samples"]


def test_a_run_that_began_with_another_runs_checkpoint() -> None:
    chain = Chain(forked=True).add([START, view(1, 4), resume(3), *(commit(s) for s in range(4, 9))])
    assert chain.faults() == []
    epochs = epochs_of(chain)
    assert epochs is not None
    assert (chain.first, epochs.inherited, epochs.complete) == (4, (0, 2), 2)


@pytest.mark.parametrize(
    ("entries", "kind", "text"),
    [
        ([view(1, 1), commit(1), commit(4)], "missing", "steps 2 to 3 were never committed: samples [4, 12)"),
        ([view(1, 1), commit(2)], "missing", "step 1 was never committed: samples [0, 4)"),
        ([view(1, 1), commit(1), resume(3), commit(4)], "missing", "steps 2 to 3 were never committed"),
        ([view(1, 1), commit(1), commit(2), commit(2)], "doubled", "step 2 was committed a second time"),
        ([view(1, 1), commit(1), commit(3), commit(2)], "order", "step 2 was committed after a later step"),
        ([view(1, 1), commit(1, samples=[4, 8])], "samples", "step 1 used samples [4, 8) in place of [0, 4)"),
        ([view(1, 1), commit(1), commit(2, 2)], "view", "step 2 was committed in view 2, which is not"),
        ([view(1, 1), view(2, 2), commit(1), commit(2, 2), commit(3, 1)], "view", "in view 1, which is not"),
        ([view(1, 1), view(2, 2), commit(1), commit(2)], "view", "in view 1, although view 2 went on from step 2"),
        ([view(1, 1), view(2, 5), view(3, 2), commit(1), commit(2, 1)], "view", "although view 3 went on from step 2"),
        ([view(1, 1), view(2, 2), commit(1, 2)], "view", "step 1 was committed in view 2, which began with step 2"),
        ([commit(1)], "view", "step 1 was committed in view 1, which is not"),
        ([view(1, 1), {**END, "status": "stopped"}, commit(1)], "view", "which is not (or not any more)"),
        ([view(2, 1), view(2, 1), commit(1, 2)], "view", "view 2 comes after view 2"),
        ([view(2, 1), view(1, 1), commit(1)], "view", "which began anew without a resume"),
        ([view(1, 4), resume(3), commit(4), resume(1)], "resume", "went on after step 1, before its own first step 4"),
        ([view(1, 1), commit(1), END], "end", "the run says that it finished, with 1 of 9 steps"),
    ],
)  # fmt: skip
def test_what_must_not_be_is_named(entries: list[Entry], kind: str, text: str) -> None:
    faults = told(*entries, total=9)
    assert [f.kind for f in faults] == [kind]
    assert text in faults[0].text


def test_epochs_name_what_is_missing_and_what_is_doubled() -> None:
    entries = [START, view(1, 1), commit(1), commit(3), commit(4, samples=[8, 12]), *(commit(s) for s in range(5, 9))]
    epochs = epochs_of(Chain().add(entries))
    assert epochs is not None
    assert [f.text for f in epochs.faults()] == [
        "epoch 1: positions never used [4, 8) and used more than once [8, 10)",
        "epoch 2: positions never used [2, 6) and used more than once [0, 2)",
    ]
    assert epochs.complete == 1


def test_steps_that_were_taken_back_and_are_not_run_again_yet_are_no_fault() -> None:
    chain = Chain().add([START, view(1, 1), *(commit(s) for s in range(1, 6)), view(2, 3), resume(2), commit(3, 2)])
    assert chain.faults() == []
    assert chain.last == 3
    assert [(b.first, b.last) for b in chain.rolled_back] == [(3, 5)]


def test_digests_are_those_of_the_commits_that_count() -> None:
    first, again = (commit(2, samples_digest=f"{d:016x}") for d in (7, 8))
    chain = Chain().add([START, view(1, 1), commit(1), first, resume(1), again, commit(3, samples_digest="f" * 16)])
    assert [chain.digest(s) for s in (1, 2, 3, 4)] == ["", "0000000000000008", "f" * 16, ""]


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    """What an honest coordinator writes: views that change, commits in turn, everything lost now and then."""
    number, done, entries = 1, 0, [START, view(1, 1)]
    for action in draw(st.lists(st.sampled_from(["commit"] * 5 + ["view", "lost"]), min_size=3, max_size=30)):
        if action == "commit":
            done += 1
            entries.append(commit(done, number))
            continue
        number += 1
        if action == "lost":
            done = draw(st.integers(0, done))
            entries.append(resume(done))
        entries.append(view(number, done + 1))
    return entries


@settings(max_examples=200, deadline=None)
@given(entries=histories())
def test_honest_histories_are_clean(entries: list[Entry]) -> None:
    chain = Chain().add(entries)
    assert chain.faults() == []
    assert chain.coverage() == ([], [])


@settings(max_examples=300, deadline=None)
@given(entries=histories(), data=st.data())
def test_no_single_lie_passes(entries: list[Entry], data: st.DataObject) -> None:
    commits = [i for i, e in enumerate(entries) if e["kind"] == "commit"]
    if not commits:
        return
    at = data.draw(st.sampled_from(commits), "commit")
    lie = data.draw(st.sampled_from(["drop", "double", "samples", "view", "step"]), "lie")
    honest, told = entries[at], list(entries)
    if lie == "drop":
        del told[at]
        if not any(e["kind"] == "commit" and e["step"] > honest["step"] for e in entries[at:]) or any(
            e["kind"] == "resume" and e["from_step"] < honest["step"] for e in entries[at:]
        ):
            return  # the newest step, or one that was taken back: nobody can miss it
    elif lie == "double":
        told.insert(at, honest)
    else:
        changed = {"samples": {"samples": [s + 1 for s in honest["samples"]]}, "view": {"view": honest["view"] + 1},
                   "step": {"step": honest["step"] + 1}}[lie]  # fmt: skip
        told[at] = {**honest, **changed}
    chain = Chain().add(told)
    taken_back = any(b.first <= honest["step"] <= b.last for b in chain.rolled_back)
    assert chain.faults() or (taken_back and lie in ("samples", "step"))
