from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.job import Schedule
from shoal.optim.schedules import factor, learning_rate

pytestmark = pytest.mark.unit

schedules = st.builds(
    Schedule,
    name=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.floats(0, 0.95),
    final=st.floats(0, 1),
)


def rates(schedule: Schedule, total: int, peak: float = 0.5) -> list[float]:
    return [learning_rate(peak, schedule, step, total) for step in range(1, total + 1)]


def torch_rates(total: int, make: object, peak: float = 0.5) -> list[float]:
    """What a torch scheduler holds after 1, 2, ... calls of step()."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    scheduler = make(optimizer)  # type: ignore[operator]
    out = []
    for _ in range(total):
        optimizer.step()
        scheduler.step()
        out.append(optimizer.param_groups[0]["lr"])
    return out


def test_linear_is_torchs_linear() -> None:
    ours = rates(Schedule(name="linear", warmup=0, final=0.1), 40)
    theirs = torch_rates(40, lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=40))
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_cosine_is_torchs_cosine_annealing() -> None:
    ours = rates(Schedule(name="cosine", warmup=0, final=0.1), 40)
    theirs = torch_rates(40, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.05))
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_warmup_and_cosine_are_torchs_lambda() -> None:
    def curve(step: int) -> float:
        if step < 10:
            return step / 10
        return 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 30))

    ours = rates(Schedule(name="cosine", warmup=0.25, final=0.2), 40)
    assert ours == pytest.approx(torch_rates(40, lambda o: torch.optim.lr_scheduler.LambdaLR(o, curve)), rel=1e-12)


@given(schedules, st.floats(0, 1))
def test_bounds(schedule: Schedule, progress: float) -> None:
    assert 0 <= factor(schedule, progress) <= 1
    if progress >= schedule.warmup and schedule.name != "constant":
        assert factor(schedule, progress) >= schedule.final * (1 - 1e-12)


@given(schedules, st.floats(0, 1), st.floats(-1e-6, 1e-6))
def test_no_jumps(schedule: Schedule, progress: float, by: float) -> None:
    steepest = max(1 / max(schedule.warmup, 1e-3), 2 / (1 - schedule.warmup))
    if schedule.warmup == 0 or schedule.warmup > 1e-3:
        near = factor(schedule, progress + by)
        assert abs(near - factor(schedule, progress)) <= steepest * abs(by) + 1e-12


@given(schedules, st.integers(1, 1000), st.integers(2, 9))
def test_only_progress_counts(schedule: Schedule, step: int, times: int) -> None:
    assert learning_rate(1.0, schedule, step * times, 1000 * times) == learning_rate(1.0, schedule, step, 1000)


@given(schedules, st.integers(1, 10_000))
def test_first_step_moves_and_last_ends_exactly(schedule: Schedule, total: int) -> None:
    last = learning_rate(0.3, schedule, total, total)
    assert last == 0.3 * (1.0 if schedule.name == "constant" else schedule.final)
    if total > 1 and (schedule.warmup > 0 or schedule.final > 0):
        assert learning_rate(0.3, schedule, 1, total) > 0
    assert learning_rate(0.3, schedule, total + 7, total) == last


def test_peak_is_reached_exactly() -> None:
    assert max(rates(Schedule(name="cosine", warmup=0.25, final=0.0), 40)) == 0.5


@pytest.mark.parametrize(("step", "total"), [(0, 10), (-1, 10), (1, 0)])
def test_steps_count_from_one(step: int, total: int) -> None:
    with pytest.raises(ValueError, match="count from 1"):
        learning_rate(0.1, Schedule(), step, total)
