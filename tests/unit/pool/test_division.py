"""Who gets how many workers: the rules, and that no history of claims can break them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import ConfigError
from shoal.pool.division import Claim, Share, divide, next_to_get, provide, useful_sizes

pytestmark = pytest.mark.unit


def claim(run: str, low: int, high: int, since: int = 0, weight: float = 1.0, begun: bool = False) -> Claim:
    return Claim(run, tuple(range(low, high + 1)), since, weight, begun)


def counts(shares: dict[str, Share]) -> dict[str, int]:
    return {run: share.count for run, share in shares.items()}


def test_one_run_gets_all_that_it_can_use() -> None:
    assert counts(divide(4, [claim("a", 1, 8)], {})) == {"a": 4}
    assert counts(divide(4, [claim("a", 1, 3)], {})) == {"a": 3}


def test_a_second_run_gets_the_fewest_that_it_needs_and_no_more_is_moved() -> None:
    shares = divide(4, [claim("a", 1, 4, 1), claim("b", 1, 4, 2)], {"a": 4})
    assert counts(shares) == {"a": 3, "b": 1}
    assert shares["a"].reason == "gives 1 back for b"
    assert shares["b"].reason == "1 to start with"


def test_what_is_free_goes_to_who_has_least_for_its_weight() -> None:
    claims = [claim("a", 1, 8, 1), claim("b", 1, 8, 2), claim("c", 1, 8, 3, weight=3.0)]
    assert counts(divide(10, claims, {})) == {"a": 2, "b": 2, "c": 6}
    assert counts(divide(3, claims[:2], {"a": 1, "b": 1})) == {"a": 2, "b": 1}
    assert counts(divide(3, claims[:2], {"a": 1, "b": 2})) == {"a": 1, "b": 2}, "who has it keeps it"


def test_who_does_not_fit_waits_and_is_not_overtaken() -> None:
    claims = [claim("a", 2, 2, 1), claim("b", 3, 3, 2), claim("c", 1, 1, 3)]
    shares = divide(4, claims, {"a": 2})
    assert counts(shares) == {"a": 2, "b": 0, "c": 0}
    assert shares["b"].reason == "needs 3 workers, and the others leave 2 of 4"
    assert shares["c"].reason == "waits behind b, which came first"
    assert counts(divide(4, claims, {"a": 2, "c": 1}))["c"] == 1, "one that runs already is not put out"


def test_a_run_that_has_begun_comes_before_newcomers_and_keeps_what_it_has() -> None:
    hurt = claim("hurt", 2, 4, 9, begun=True)
    assert counts(divide(4, [claim("new", 3, 4, 1), hurt], {"hurt": 1})) == {"hurt": 4, "new": 0}
    rich = claim("rich", 1, 4, 1)
    assert counts(divide(4, [rich, hurt], {"rich": 3, "hurt": 1})) == {"rich": 2, "hurt": 2}
    shares = divide(3, [claim("other", 2, 4, 1), hurt], {"other": 2, "hurt": 1})
    assert counts(shares) == {"other": 2, "hurt": 1}, "its last worker may hold all that it has learned"
    assert shares["hurt"].reason == "needs 2 workers, and the others leave 1 of 3"


def test_sizes_that_make_no_step_shorter_are_left_to_others() -> None:
    assert useful_sizes(1, 8, 8) == (1, 2, 3, 4, 8)
    assert useful_sizes(5, 7, 8) == (5,)
    assert useful_sizes(1, 16, 4) == (1, 2, 4)
    sizes = useful_sizes(1, 8, 8)
    assert counts(divide(8, [Claim("a", sizes, 1), Claim("b", sizes, 2)], {"a": 8})) == {"a": 4, "b": 4}


def test_the_next_worker_goes_first_to_who_cannot_run_yet() -> None:
    claims = [claim("a", 1, 4, 1), claim("b", 2, 4, 2), claim("c", 1, 4, 3)]
    shares = {run: Share(3, "") for run in "abc"}
    assert [c.run for c in next_to_get(claims, shares, {"a": 1, "b": 1, "c": 3})] == ["b", "a"]


def test_processes_are_started_for_who_lacks_them_and_others_make_way_only_where_there_is_no_room() -> None:
    def wanted(there: dict[str, int], lacking: dict[str, int], **of: dict[str, int]) -> tuple[int, dict[Any, int]]:
        kinds: dict[str, dict[str, int]] = {"coming": {}, "idle": {}, "warm": {"exact": 1}, **of}
        found = provide(most=4, there=there, lacking=lacking, **kinds)
        return found.processes, dict(found.discard)

    two, four = {"exact": 2}, {"exact": 4}
    assert wanted({}, {}) == (1, {}), "one is kept warm"
    assert wanted({}, {"fast": 2}) == (3, {})
    assert wanted({}, {"fast": 4}) == (4, {}), "as far as there is room"
    assert wanted({"fast": 2}, {"fast": 2}, coming={"fast": 2}, warm={}) == (2, {}), "those that come to rest will do"
    assert wanted(two, {"fast": 2}, idle=two) == (4, {}), "there is room for both"
    assert wanted(four, {"fast": 2}, idle={"exact": 3}) == (4, {"exact": 2})
    assert wanted(four, {"fast": 2, "exact": 1}, idle={"exact": 1}) == (4, {}), "it is lacked itself"
    assert wanted({"fast": 4}, {}, idle={"fast": 4}) == (4, {}), "to be kept warm, nobody has to make way"


@pytest.mark.parametrize(("sizes", "weight"), [((), 1.0), ((0, 1), 1.0), ((2, 1), 1.0), ((1,), 0.0)])
def test_bad_claims_are_refused(sizes: tuple[int, ...], weight: float) -> None:
    with pytest.raises(ConfigError):
        Claim("a", sizes, 0, weight)


@st.composite
def situations(draw: st.DrawFn) -> tuple[int, list[Claim], dict[str, int]]:
    """A pool, claims on it, and what they hold: never more than there is."""
    total = draw(st.integers(1, 12))
    claims, held, left = [], {}, total
    for i in range(draw(st.integers(0, 5))):
        low = draw(st.integers(1, 5))
        sizes = useful_sizes(low, draw(st.integers(low, 12)), draw(st.sampled_from([4, 8, 16])))
        claims.append(
            Claim(
                f"r{i}",
                sizes,
                draw(st.integers(0, 99)) * 10 + i,
                draw(st.sampled_from([0.5, 1.0, 3.0])),
                draw(st.booleans()),
            )
        )
        held[f"r{i}"] = draw(st.integers(0, min(left, sizes[-1])))
        left -= held[f"r{i}"]
    return total, claims, held


@given(situations())
def test_every_division_keeps_the_rules(situation: tuple[int, list[Claim], dict[str, int]]) -> None:
    total, claims, held = situation
    shares = divide(total, claims, held)
    given_out = counts(shares)
    assert given_out.keys() == {c.run for c in claims}
    assert all(share.reason for share in shares.values())
    assert sum(given_out.values()) <= total
    begun = [c for c in claims if c.begun or held[c.run] >= c.low]
    seated = [c for c in claims if given_out[c.run] >= c.low]
    waiting = [c for c in claims if c not in seated]
    assert all(given_out[c.run] in c.sizes for c in seated)
    assert all(given_out[c.run] == (held[c.run] if c in begun else 0) for c in waiting)
    assert all(c in seated for c in claims if held[c.run] >= c.low), "who runs is not put out"
    if waiting:
        first = min(waiting, key=lambda c: (c not in begun, c.since))
        room = total - sum(c.low for c in seated) - sum(given_out[c.run] for c in waiting if c is not first)
        assert first.low > room, "the first that waits does not fit"
        assert all(first not in begun and c.since < first.since for c in seated if c not in begun), "nobody overtakes"
    free = total - sum(given_out.values())
    steps = [above - given_out[c.run] for c in seated if (above := c.above(given_out[c.run]))]
    assert all(step > free for step in steps), "nothing that somebody can use lies idle"


@given(situations())
def test_a_worker_moves_only_for_a_run_that_could_not_start(situation: tuple[int, list[Claim], dict[str, int]]) -> None:
    total, claims, held = situation
    given_out = counts(divide(total, claims, held))
    starts = any(held[c.run] < c.low <= given_out[c.run] for c in claims)
    loses = [c.run for c in claims if given_out[c.run] < c.fitting(held[c.run])]
    assert not loses or starts
    assert divide(total, claims, given_out).keys() == given_out.keys()
    assert counts(divide(total, claims, given_out)) == given_out, "carried out, it is what would be decided again"


@given(situations())
def test_what_is_lent_step_by_step_comes_to_the_division(situation: tuple[int, list[Claim], dict[str, int]]) -> None:
    """A pool that recalls and lends one worker at a time gets there, and never lends more than it has."""
    total, claims, held = situation
    for _ in range(10 * total + 10):
        shares = divide(total, claims, held)
        recalled = [c.run for c in claims if held[c.run] > shares[c.run].count]
        due = next_to_get(claims, shares, held)
        if recalled:
            held = {**held, recalled[0]: held[recalled[0]] - 1}
        elif due and sum(held.values()) < total:
            held = {**held, due[0].run: held[due[0].run] + 1}
        else:
            break
    assert counts(divide(total, claims, held)) == held
