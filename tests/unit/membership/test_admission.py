"""A newcomer fits the run or is refused with what differs."""

from __future__ import annotations

import pytest

from shoal.membership.admission import SHOWN, refusal

pytestmark = pytest.mark.unit

RUN = {"Python": "3.11.9", "torch": "2.13.0", "model": "3fa9", "module user": "11", "module once": "22"}


def test_who_is_like_the_run_is_admitted() -> None:
    assert refusal(dict(RUN), RUN) is None


def test_what_only_one_side_has_loaded_is_not_compared() -> None:
    assert refusal({"torch": "2.13.0", "module lazy": "9"}, RUN) is None


def test_what_differs_is_named_with_both_values() -> None:
    assert refusal({**RUN, "torch": "2.12.0", "model": "77aa"}, RUN) == (
        "model is 77aa, not 3fa9, torch is 2.12.0, not 2.13.0"
    )


def test_many_differences_are_counted() -> None:
    many = {f"module m{i}": "a" for i in range(SHOWN + 3)}
    said = refusal(dict.fromkeys(many, "b"), many)
    assert said is not None
    assert said.endswith(", and 3 more")
