"""Two computations of one stretch: equal bits, or the first value that is not equal."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from shoal.audit.replay import commits_of, compare

pytestmark = pytest.mark.unit

Entry = dict[str, Any]


def commit(step: int, **more: Any) -> Entry:
    return {"kind": "commit", "step": step, "loss": 2.0 / step, "lr": 1e-3 * step, "grad_norm": 0.1 + step, **more}


def run(*changed: Entry, first: int = 1, last: int = 5) -> dict[int, Entry]:
    whole = {s: commit(s) for s in range(first, last + 1)}
    return {**whole, **{e["step"]: e for e in changed}}


def test_equal_bits_are_identical_also_after_a_way_through_json() -> None:
    again = {s: json.loads(json.dumps(e)) for s, e in run().items()}
    found = compare(run(), again)
    assert (found.equal, found.partial, found.difference) == (5, 0, None)


@pytest.mark.parametrize("name", ["loss", "lr", "grad_norm"])
def test_the_last_bit_counts_and_the_first_step_is_named(name: str) -> None:
    value = commit(3)[name]
    other = math.nextafter(value, 10)
    found = compare(run(), run(commit(3, **{name: other}), commit(4, loss=9.0)))
    assert found.equal == 2
    assert found.difference is not None
    assert (found.difference.step, found.difference.what) == (3, name)
    assert f"step 3: {name} was {value!r}, now {other!r} (relative difference" in found.difference.text


def test_a_tolerance_forgives_rounding_and_no_more() -> None:
    again = run(commit(3, loss=2.0 / 3 * (1 + 1e-6)))
    assert compare(run(), again, tolerance=1e-5).difference is None
    assert compare(run(), again, tolerance=1e-7).difference is not None


@pytest.mark.parametrize(("was", "now", "same"), [
    (math.nan, math.nan, True), (math.inf, math.inf, True), (math.inf, -math.inf, False), (0.0, -0.0, False),
    (1.0, math.nan, False), (None, None, True), (None, 1.0, False),
])  # fmt: skip
def test_values_that_are_no_plain_numbers(was: float | None, now: float | None, same: bool) -> None:
    found = compare(run(commit(2, grad_norm=was)), run(commit(2, grad_norm=now)))
    assert (found.difference is None) == same
    if found.difference is not None:
        assert "step 2: grad_norm was" in found.difference.text


def test_a_step_that_was_not_computed_differs() -> None:
    found = compare(run(), run(last=4))
    assert found.difference is not None
    assert found.difference.text == "step 5: the step was committed, now not computed"


def test_the_loss_of_survivors_is_left_out_and_counted() -> None:
    found = compare(run(commit(2, loss=7.0, covered=4)), run())
    assert (found.equal, found.partial, found.difference) == (5, 1, None)
    assert compare(run(commit(2, loss=7.0, covered=4)), run(commit(2, lr=0.5))).difference is not None
    nobody = commit(2, loss=math.nan, lr=math.nan, grad_norm=math.nan, covered=0)
    assert compare(run(nobody), run()).difference is None


def test_samples_are_compared_where_both_digests_are_known() -> None:
    known, other = commit(2, samples_digest="a"), commit(2, samples_digest="b")
    assert compare(run(known), run()).difference is None
    assert compare(run(known), run(other)).difference is not None


def test_only_what_counts_and_lies_in_the_stretch_is_compared() -> None:
    entries = [commit(1), commit(2), commit(3, loss=9.0), {"kind": "evaluation", "step": 3}]
    entries += [{"kind": "resume", "from_step": 2}, commit(3), commit(4)]
    found = commits_of(entries, 2, 3)
    assert sorted(found) == [2, 3]
    assert found[3]["loss"] == 2.0 / 3
