"""Schedules of every family, for hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from shoal.job import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Linear,
    OneCycle,
    Piecewise,
    Polynomial,
    RangeTest,
    Rex,
    Scaled,
    Step,
    Triangular,
    Triangular2,
    WarmRestarts,
    WarmupStableDecay,
)

WARMUP = st.floats(0.001, 0.45) | st.just(0.0)
SHARE = st.floats(1e-6, 1) | st.just(0.0)
COMMON: dict[str, st.SearchStrategy[Any]] = {"warmup": WARMUP, "final": SHARE}
CYCLES = {"warmup": WARMUP, "cycles": st.integers(1, 6), "low": SHARE}
PLAIN: dict[type[Any], dict[str, st.SearchStrategy[Any]]] = {
    Constant: {"warmup": WARMUP},
    Linear: COMMON,
    Cosine: COMMON,
    Polynomial: {**COMMON, "power": st.floats(0.2, 5)},
    Step: {"warmup": WARMUP, "factor": SHARE, "every": st.none() | st.floats(0.45, 1)},
    Exponential: {"warmup": WARMUP, "final": st.floats(1e-6, 1)},
    InverseSqrt: {"warmup": st.floats(0.001, 0.9)},
    Triangular: CYCLES,
    Triangular2: CYCLES,
    OneCycle: {**COMMON, "start": SHARE, "shape": st.sampled_from(["cosine", "linear"]), "three_phase": st.booleans()},
    WarmRestarts: {**COMMON, "cycles": st.integers(1, 5), "growth": st.floats(0.5, 3) | st.just(1.0)},
    Rex: COMMON,
    WarmupStableDecay: {
        **COMMON, "decay": st.floats(0.05, 0.55), "shape": st.sampled_from(["sqrt", "linear", "cosine"])
    },
    RangeTest: {"warmup": WARMUP, "start": st.floats(1e-6, 1)},
}  # fmt: skip
families = st.one_of([st.builds(kind, **fields) for kind, fields in PLAIN.items()])


def pieces_of(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def pieces(pairs: list[tuple[int, Any]]) -> Piecewise:
        total = sum(weight for weight, _ in pairs)
        return Piecewise(pieces=tuple((weight / total, schedule) for weight, schedule in pairs))

    return st.lists(st.tuples(st.integers(1, 9), of), min_size=1, max_size=4).map(pieces)


schedules = st.recursive(
    families, lambda of: pieces_of(of) | st.builds(Scaled, by=st.floats(0.001, 1), of=of), max_leaves=5
)
