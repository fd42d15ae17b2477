"""Short sequences first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.data.shortening import length_at, shorten
from shoal.errors import ConfigError, DataError
from shoal.job import LengthWarmup

pytestmark = pytest.mark.unit


@given(st.integers(1, 300), st.integers(1, 200), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1))
def test_lengths_grow_to_the_whole(whole: int, start: int, multiple: int, early: float, late: float) -> None:
    spec = LengthWarmup(start=start, until=0.7, multiple=multiple)
    low, high = sorted((early, late))
    assert min(start, whole) <= length_at(spec, whole, low) <= length_at(spec, whole, high) <= whole
    assert length_at(spec, whole, 0.7) == whole


def test_every_column_is_cut_alike() -> None:
    tokens = np.arange(4 * 65).reshape(4, 65)
    spec = LengthWarmup(start=16, until=0.5, columns=("tokens", "segments"))
    cut = shorten(spec, {"tokens": tokens, "segments": tokens, "id": np.arange(4)}, 0.25)
    assert cut["tokens"].tolist() == cut["segments"].tolist() == tokens[:, :41].tolist()
    assert cut["id"].tolist() == [0, 1, 2, 3]
    assert shorten(spec, {"tokens": tokens, "segments": tokens}, 0.5)["tokens"].shape == (4, 65)


def test_what_cannot_be_cut_is_named() -> None:
    with pytest.raises(DataError, match=r"'tokens' is missing.*\['image'\]"):
        shorten(LengthWarmup(), {"image": np.zeros((2, 3))}, 0.0)
    with pytest.raises(DataError, match="holds one number per sample"):
        shorten(LengthWarmup(columns=("label",)), {"label": np.zeros(2)}, 0.0)
    with pytest.raises(ConfigError, match=r"LengthWarmup\.start=0"):
        LengthWarmup(start=0)
