"""The simulator: what must hold whatever the trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from shoal.simulate.costs import Costs
from shoal.simulate.intervals import daly, young
from shoal.simulate.methods import METHODS, Method
from shoal.simulate.outcome import compare, play
from shoal.simulate.play import Play, Setting
from shoal.simulate.trace import Event, Trace, changed, poisson
from shoal.simulate.work import Work

pytestmark = pytest.mark.unit

FREE = Costs(
    shard_s=1.0, start_s=0.0, detect_s=0.0, regroup_s=0.0, regroup_per_worker_s=0.0, state_s=0.0, resume_s=0.0,
    rebuild_s=0.0, restart_s=0.0, storage=1e18, host_copy=1e18, bandwidth=1e18,
)  # fmt: skip


def a_work(costs: Costs = FREE, **values: object) -> Work:
    return Work(**{"model_size": 1e9, "tokens": 1e6, "virtual_shards": 24, "stage": 1, "costs": costs, **values})  # type: ignore[arg-type]


def a_setting(trace: Trace, work: Work | None = None, *, nodes: int = 4, per_node: int = 1, least: int = 1) -> Setting:
    return Setting(
        work=work or a_work(), trace=trace, length_s=trace.length_s, per_node=per_node, nodes=nodes, least=least
    )


def a_trace(*events: tuple[float, str, str], length_s: float = 1000.0, notice_s: float = 0.0) -> Trace:
    made = [Event(at, what, node, notice_s if what == "remove" else 0.0) for at, what, node in events]  # type: ignore[arg-type]
    return Trace(tuple(made), length_s, "test")


def four(*events: tuple[float, str, str], length_s: float = 1000.0, notice_s: float = 0.0) -> Trace:
    adds = [(0.0, "add", f"n{i}") for i in range(4)]
    return a_trace(*adds, *events, length_s=length_s, notice_s=notice_s)


seconds = st.floats(0.0, 60.0)


@st.composite
def anything(draw: st.DrawFn) -> Setting:
    costs = Costs(
        shard_s=draw(st.floats(0.05, 5.0)), start_s=draw(seconds), detect_s=draw(seconds), regroup_s=draw(seconds),
        state_s=draw(st.one_of(st.none(), seconds)), resume_s=draw(seconds), rebuild_s=draw(seconds),
        restart_s=draw(st.floats(0.0, 400.0)), storage=draw(st.floats(1e7, 1e10)), host_copy=draw(st.floats(1e8, 1e11)),
        bandwidth=draw(st.floats(1e8, 1e11)), beside=draw(st.floats(0.0, 1.0)),
    )  # fmt: skip
    work = Work(
        model_size=draw(st.floats(1e7, 1e10)), tokens=1e6, virtual_shards=draw(st.integers(1, 40)),
        stage=draw(st.integers(0, 3)), costs=costs,
    )  # fmt: skip
    nodes = draw(st.integers(1, 9))
    seed = draw(st.integers(0, 10**6))
    trace = poisson(
        nodes, between_s=draw(st.floats(30.0, 5000.0)), away_s=draw(st.floats(0.0, 600.0)), length_s=4000.0, seed=seed
    )
    trace = changed(
        trace, spread_s=draw(st.sampled_from([0.0, 0.0, 60.0])), notice_share=draw(st.floats(0.0, 1.0)),
        notice_s=draw(st.floats(0.0, 200.0)), seed=seed,
    )  # fmt: skip
    return Setting(
        work=work, trace=trace, length_s=trace.length_s, per_node=draw(st.integers(1, 4)),
        nodes=draw(st.integers(1, 10)), least=draw(st.integers(1, 3)),
    )  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(setting=anything(), name=st.sampled_from(METHODS), every=st.integers(1, 500))
def test_all_time_is_accounted_for(setting: Setting, name: str, every: int) -> None:
    played = Play(setting, Method(name=name, checkpoint_every=every)).play()  # type: ignore[arg-type]
    spent = played.progress.spent
    assert spent.total == pytest.approx(played.available, rel=1e-9, abs=1e-6)
    for bucket in ("useful", "overhead", "redone", "lost", "stopped", "start", "idle"):
        assert getattr(spent, bucket) >= -1e-6, bucket
    assert spent.useful == pytest.approx(played.progress.done * setting.work.even_s, abs=1.01 * setting.work.even_s)


@settings(deadline=None, max_examples=40)
@given(setting=anything())
def test_the_same_again(setting: Setting) -> None:
    assert compare(setting) == compare(setting)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 6), stage=st.integers(0, 3), copy=st.floats(1e8, 1e10), every=st.integers(1, 50))
def test_without_events_only_saving_costs(n: int, stage: int, copy: float, every: int) -> None:
    work = a_work(replace(FREE, host_copy=copy), virtual_shards=60, stage=stage)
    trace = a_trace(*[(0.0, "add", f"n{i}") for i in range(n)])
    method = Method(name="in place", checkpoint_every=every, snapshot_every=every)
    found = play(a_setting(trace, work, nodes=n), method)
    step_s, saves = work.step_s(n), work.copy_s(n) / every * (2 if stage else 1)
    assert found.goodput == pytest.approx(step_s / (step_s + saves))
    assert found.spent.overhead == pytest.approx(found.available * saves / (step_s + saves))


def test_a_loss_costs_what_is_said() -> None:
    costs = replace(FREE, detect_s=5.0, regroup_s=2.0, state_s=3.0, resume_s=1.0, start_s=40.0)
    work = a_work(costs)  # 24 shards of 1 s: 6 s a step with four, 8 s with three
    setting = a_setting(four((604.0, "remove", "n1"), (700.0, "add", "n4")), work)
    played = Play(setting, Method(name="in place", checkpoint_every=10**6, snapshot_every=1)).play()
    loss = played.changes[1]
    assert (loss.what, loss.at_s, loss.members, loss.from_memory) == ("loss", 604.0, 3, True)
    assert loss.stop_s == pytest.approx(11.0)
    # After 40 s of starting and 3 of forming, the 93rd step was done at 601.
    assert loss.steps_redone == 0
    assert played.progress.spent.lost == pytest.approx(4 * 3.0)
    join = played.changes[2]
    assert (join.what, join.members) == ("change", 4)
    assert join.at_s >= 740.0
    assert join.stop_s == pytest.approx(6.0)


def test_steps_since_the_last_copy_are_done_again() -> None:
    work = a_work(stage=2)
    setting = a_setting(four((99.0, "remove", "n0")), work)
    kept = Play(setting, Method(name="in place", checkpoint_every=10**6, snapshot_every=5)).play()
    assert kept.changes[1].steps_redone == 0  # 16 steps are done, copies are of the steps 1, 6, 11, 16
    setting = a_setting(four((117.0, "remove", "n0")), work)
    kept = Play(setting, Method(name="in place", checkpoint_every=10**6, snapshot_every=5)).play()
    assert kept.changes[1].steps_redone == 3
    assert kept.progress.spent.redone == pytest.approx(3 * 24)
    assert kept.progress.spent.lost == pytest.approx(4 * 3.0)


def test_two_nodes_at_once_may_take_a_state_with_them() -> None:
    setting = a_setting(four((602.0, "remove", "n1"), (602.0, "remove", "n2")))
    method = Method(name="in place", checkpoint_every=40, snapshot_every=1)
    played = Play(setting, method).play()  # n2 keeps the copy of n1
    assert not played.changes[1].from_memory
    assert played.changes[1].steps_redone == 100 - 80
    apart = a_setting(four((602.0, "remove", "n1"), (602.0, "remove", "n3")))
    assert Play(apart, method).play().changes[1].from_memory
    replicated = a_setting(four((602.0, "remove", "n1"), (602.0, "remove", "n2")), a_work(stage=0))
    assert Play(replicated, method).play().changes[1].from_memory


def test_a_leave_that_was_announced_loses_nothing() -> None:
    trace = four((603.0, "remove", "n1"), notice_s=120.0)
    played = Play(a_setting(trace), Method(name="in place", checkpoint_every=10**6, snapshot_every=50)).play()
    leave = played.changes[1]
    assert (leave.what, leave.steps_redone, played.losses) == ("change", 0, 0)
    assert leave.at_s < 603.0
    assert played.progress.spent.lost == 0.0
    restarted = Play(a_setting(trace), Method(name="restart", checkpoint_every=50)).play()
    assert restarted.changes[1].steps_redone == 0  # it has time to save, too


def test_a_newcomer_that_makes_no_step_shorter_waits() -> None:
    trace = four((100.0, "add", "n4"))
    played = Play(
        a_setting(trace, a_work(virtual_shards=8), nodes=5), Method(name="in place", checkpoint_every=100)
    ).play()
    assert len(played.changes) == 1
    assert played.progress.spent.idle == pytest.approx(900.0)


def test_too_few_workers_wait() -> None:
    setting = a_setting(four((500.0, "remove", "n1"), (700.0, "add", "n5")), least=4)
    played = Play(setting, Method(name="in place", checkpoint_every=100)).play()
    assert played.changes[1].members == 4
    assert played.changes[1].stop_s == pytest.approx(200.0)
    assert played.progress.spent.idle == pytest.approx(600.0)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])
@given(setting=anything(), every=st.integers(1, 40))
def test_in_place_is_never_worse_at_equal_costs(setting: Setting, every: int) -> None:
    """Starting again is as cheap as forming a view, and checkpoints cost nothing. Losses only: if all leave at once,
    the state takes one view more to go from hand to hand than by a checkpoint that is free. And somebody always stays:
    where all are lost again and again, whoever happens to have just saved is ahead."""
    events = tuple(replace(e, notice_s=0.0) for e in setting.trace.events)
    setting = replace(setting, trace=replace(setting.trace, events=events))
    costs = replace(setting.work.costs, rebuild_s=0.0, state_s=0.0, storage=1e18, bandwidth=1e18, beside=0.0)
    setting = replace(setting, work=replace(setting.work, costs=costs, stage=0))
    kept = play(setting, Method(name="in place", checkpoint_every=every))
    assume(not kept.from_storage)
    restarted = play(setting, Method(name="restart in place", checkpoint_every=every))
    step = setting.work.step_s(1) * setting.nodes * setting.per_node
    assert kept.spent.useful >= restarted.spent.useful - step


def test_young_and_daly() -> None:
    assert young(2.0, 3600.0) == pytest.approx(120.0)
    assert daly(2.0, 3600.0) == pytest.approx(120.0 * (1 + (1 / 3600) ** 0.5 / 3 + 1 / 3600 / 9) - 2)
    assert daly(10.0, 4.0) == 4.0


@pytest.mark.parametrize("between_s", [600.0, 3600.0])
def test_the_simulated_optimum_is_where_the_formula_has_it(between_s: float) -> None:
    """Restarts at random losses: nothing of this was built into the simulator."""
    costs = replace(FREE, shard_s=1 / 24, restart_s=20.0, host_copy=12e9 / 8 / 5.0)  # a checkpoint takes 5 s
    work = a_work(costs, virtual_shards=24)
    trace = poisson(8, between_s=between_s, away_s=0.0, length_s=1200 * between_s, seed=3)
    setting = a_setting(trace, work, nodes=8)
    best = daly(5.0, between_s)
    found = {
        factor: play(setting, Method(name="restart", checkpoint_every=round(factor * best / work.step_s(8)))).goodput
        for factor in (0.25, 0.5, 1.0, 2.0, 4.0)
    }
    assert max(found, key=lambda f: found[f]) == 1.0, found
    # Daly, equation 20: the time of a run by that of its work.
    tau, m = best, between_s
    ratio = m * (2.718281828 ** (20.0 / m)) * (2.718281828 ** ((tau + 5.0) / m) - 1) / tau
    assert found[1.0] == pytest.approx(1 / ratio, rel=0.03)
