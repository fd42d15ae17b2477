"""State moves from member to member to the bit: any engine, any size to any other, members lost and members new."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from shoal.engines import make_engine
from shoal.errors import CheckpointError
from shoal.job import Job, Optimizer
from shoal.membership.messages import InMemory
from shoal.membership.view import MemberId, View
from shoal.optim.schedules import learning_rate
from shoal.state.exchange import Exchange, take_state_from_peers
from shoal.state.layout import Extent, Shard, divide
from tests.support import engine_tasks as tasks
from tests.support.engine_jobs import ENGINES, EXACT, difference, digest_of, make_job
from tests.support.engine_runs import TOTAL, forget, plain, run_step
from tests.support.process_pool import ProcessPool

pytestmark = pytest.mark.cluster

each_engine = pytest.mark.parametrize("engine", ENGINES)
SGD = Optimizer(name="sgd", lr=0.05, clip_norm=None)
CHAIN = ([0, 1, 2], [0, 2], [3, 0, 4, 2, 1], [3, 0, 4, 2, 1, 5, 6, 7], [7, 3, 1, 5, 4], [1, 5, 4], [5], [6, 0, 1, 5])
"""Members of one view after another. Whoever is missing from a view is lost; its part lies with its buddy."""


@pytest.fixture(scope="module")
def many() -> Iterator[ProcessPool]:
    pool = ProcessPool(8, numerics="exact")
    yield pool
    pool.close()


class Cast:
    """Processes as members from view to view: who is lost is a newcomer when it comes back."""

    def __init__(self, pool: ProcessPool, job: Job) -> None:
        self.pool, self.job, self.number = pool, job, 0
        self.members: list[int] = []
        self.snapshots: list[Shard] = []

    def start(self, members: Sequence[int], steps: int) -> None:
        """A fresh view that trains for `steps`."""
        self.pool.run(forget, members=range(self.pool.size))
        self._view(members, None, (0, steps))

    def go_on(self, members: Sequence[int], steps: tuple[int, int]) -> None:
        """The next view. Of each lost member's snapshot the next survivor has the copy."""
        lost = [m for m in self.members if m not in members]
        survivors = [m for m in self.members if m in members]
        gives = {m: [m] for m in survivors}
        for i, m in enumerate(lost):
            if self.job.engine.name == "zero":
                gives[survivors[i % len(survivors)]].append(m)
        if lost:
            self.pool.run(forget, members=lost)
        source = InMemory(steps[0], tuple((f"w{m}", tuple(f"w{o}" for o in owners)) for m, owners in gives.items()))
        self._view(members, source, steps)

    def _view(self, members: Sequence[int], source: InMemory | None, steps: tuple[int, int]) -> None:
        self.number += 1
        held = dict(zip((f"w{m}" for m in self.members), self.snapshots, strict=True))
        view = View(self.number, tuple(f"w{m}" for m in members))
        self.outcomes = self.pool.run(in_view, self.job, view, source, held, steps, members=members)
        self.members, self.snapshots = list(members), [shard for shard, _, _ in self.outcomes]


def in_view(
    kept: dict[str, Any],
    rank: int,
    size: int,
    job: Job,
    view: View,
    source: InMemory | None,
    held: dict[MemberId, Shard],
    steps: tuple[int, int],
) -> tuple[Shard, str | None, dict[str, torch.Tensor]]:
    """Take over the state, train; this member's snapshot, the digest of its state if it is whole, the parameters."""
    me = view.members[rank]
    engine = kept.setdefault("engine", None) or make_engine(job, torch.device("cpu"))
    kept["engine"] = engine
    engine.form(rank, size)
    try:
        if source is not None:
            mine = dict(source.gives).get(me, ())
            untouched = [(p, p._version) for p in engine.model.parameters()] if engine.keeps_state and mine else []

            def keeps(owner: MemberId, step: int) -> Shard:
                assert owner in mine
                assert step == source.step
                return held[owner]

            take_state_from_peers(engine, source, me, view, keeps)
            assert all(p._version == version for p, version in untouched), "who is up to date is not written to"
        for step in range(steps[0] + 1, steps[1] + 1):
            run_step(engine, job, rank, size, step)
            engine.update(learning_rate(job.optimizer.lr, job.schedule, step / TOTAL))
        whole = digest_of([engine.offered(0, 1)]) if engine.keeps_state else None
        return engine.read_state(), whole, engine.full_parameters()
    finally:
        engine.leave()


def digest(cast: Cast) -> str:
    """Of the state as all members hold it together; replicated: and of each one's whole state."""
    found = digest_of(cast.snapshots)
    assert all(whole in (None, found) for _, whole, _ in cast.outcomes)
    return found


@each_engine
def test_a_state_is_the_same_to_the_bit_after_every_change_of_members(many: ProcessPool, engine: str) -> None:
    cast = Cast(many, make_job(tasks.Partial(), engine))
    cast.start(CHAIN[0], 3)
    right = digest(cast)
    for members in CHAIN[1:]:
        cast.go_on(members, (3, 3))
        assert digest(cast) == right, members


@each_engine
@pytest.mark.parametrize("steps", [0, 2])
def test_buffers_momentum_and_a_state_without_steps(many: ProcessPool, engine: str, steps: int) -> None:
    cast = Cast(many, make_job(tasks.Normalizing(), engine, optimizer=SGD))
    cast.start([0, 1, 2, 3], steps)
    right = digest(cast)
    for members in ([2, 3, 1], [4, 3], [3, 0, 4]):
        cast.go_on(members, (steps, steps))
        assert digest(cast) == right, members
        buffers = cast.snapshots[0].buffers
        assert int(buffers["1.num_batches_tracked"]) == steps
        assert all(torch.equal(s.buffers[n], b) for s in cast.snapshots for n, b in buffers.items())


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_optimizer_state_in_host_memory(many: ProcessPool, engine: str) -> None:
    cast = Cast(many, make_job(tasks.Partial(), engine, options={"offload": True}))
    cast.start([0, 1, 2], 2)
    right = digest(cast)
    for members in ([0, 2], [3, 0, 2]):
        cast.go_on(members, (2, 2))
        assert digest(cast) == right, members


@each_engine
def test_training_goes_on_as_if_nobody_had_come_or_gone(many: ProcessPool, engine: str) -> None:
    job = make_job(tasks.Language(), engine)
    right = plain(job, 8)[0]
    cast = Cast(many, job)
    come_and_go(cast)
    assert difference(cast.outcomes[0][2], right) < EXACT


@each_engine
def test_in_exact_numerics_no_bit_tells_that_anyone_came_or_went(many: ProcessPool, engine: str) -> None:
    cast = Cast(many, replace(make_job(tasks.Normalizing(), engine), numerics="exact"))
    come_and_go(cast)
    found = digest(cast)
    cast.start([5], 8)
    assert digest(cast) == found


def come_and_go(cast: Cast) -> None:
    """Eight steps: by three members, by two of them, with two newcomers, without one of the first."""
    cast.start([0, 1, 2], 2)
    cast.go_on([2, 0], (2, 4))
    cast.go_on([3, 2, 0, 1], (4, 6))
    cast.go_on([0, 1, 3], (6, 8))


def test_a_view_of_members_that_are_all_up_to_date_moves_nothing(many: ProcessPool) -> None:
    cast = Cast(many, make_job(tasks.Regression(), "replicated"))
    cast.start([0, 1, 2], 2)
    many.run(keep_everything, members=[1, 2])


def keep_everything(kept: dict[str, Any], rank: int, size: int) -> None:
    """A handover that only one of two members takes part in: it must not wait for the other."""
    engine = kept["engine"]
    engine.form(rank, size)
    try:
        if rank == 0:
            source = InMemory(2, (("a", ("a",)), ("b", ("b",))))
            take_state_from_peers(engine, source, "a", View(9, ("a", "b")), lambda owner, step: pytest.fail(owner))
    finally:
        engine.leave()


# What cannot be put together is refused by all ---------------------------------------------------------------------

SIZES = [("weight", 50), ("bias", 7)]


def shard_for(part: int, parts: int, keys: Sequence[str] = ("param", "exp_avg"), step: int = 5) -> Shard:
    extents = divide(SIZES, part, parts)
    values = [math.sin(sum(map(ord, e.name)) + i) for e in extents for i in range(e.start, e.stop)]
    return Shard(extents, {key: torch.tensor(values) * (i + 1) for i, key in enumerate(keys)}, {"optimizer_step": step})


def refused(kept: dict[str, Any], rank: int, size: int, case: str) -> str:
    """What this member is told; afterwards the group must still be usable."""
    wants = {"param": divide(SIZES, rank, size), "exp_avg": divide(SIZES, rank, size)}
    offers, problem = [shard_for(rank, size)], None
    if case == "missing" and rank == 1:
        offers = []
    elif case == "step" and rank == 2:
        offers = [shard_for(rank, size, step=4)]
    elif case == "key" and rank == 2:
        offers = [shard_for(rank, size, keys=("param", "momentum_buffer"))]
    elif case == "problem" and rank == 0:
        problem = "member w3: no snapshot of w1"
    with pytest.raises(CheckpointError) as caught:
        Exchange(offers, wants, problem)
    exchange = Exchange([shard_for(rank, size)], wants)
    for key, extents in wants.items():
        assert torch.equal(exchange.read(key, extents), shard_for(rank, size).tensors[key])
    return str(caught.value)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("missing", r"nobody has weight\[19:38\]"),
        ("step", r"rank 0 has \{'optimizer_step': 5\}, rank 2 has \{'optimizer_step': 4\}"),
        ("key", r"rank 2 has lacks exp_avg, it has param, momentum_buffer"),
        ("problem", r"^member w3: no snapshot of w1$"),
    ],
)
def test_a_state_that_is_not_whole_is_refused_by_every_member(many: ProcessPool, case: str, said: str) -> None:
    texts = many.run(refused, case, members=range(3))
    assert len(set(texts)) == 1
    with pytest.raises(CheckpointError, match=said):
        raise CheckpointError(texts[0])


def test_a_snapshot_that_a_member_does_not_have_fails_the_handover_everywhere(many: ProcessPool) -> None:
    texts = many.run(hold_nothing, make_job(tasks.Regression(), "zero1"), members=range(2))
    assert texts == ["member b: there is no snapshot of c"] * 2


def hold_nothing(kept: dict[str, Any], rank: int, size: int, job: Job) -> str:
    engine = make_engine(job, torch.device("cpu"))
    engine.form(rank, size)

    def held(owner: MemberId, step: int) -> Shard:
        if owner == "c":
            raise CheckpointError("there is no snapshot of c")
        return engine.read_state()

    view = View(1, ("a", "b"))
    try:
        with pytest.raises(CheckpointError) as caught:
            take_state_from_peers(engine, InMemory(0, (("a", ("a",)), ("b", ("b", "c")))), "ab"[rank], view, held)
        return str(caught.value)
    finally:
        engine.leave()


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_large_and_small_pieces_and_buffers_of_every_type_arrive(many: ProcessPool, size: int) -> None:
    assert all(many.run(exchange_all_kinds, members=range(size)))


def exchange_all_kinds(kept: dict[str, Any], rank: int, size: int) -> bool:
    """From an even division among the lower half of the ranks to everything on the last and a stripe on each."""
    table = [
        ("large", 2_500_000),
        *((f"small{i}", 100 + i % 300) for i in range(2000)),
        ("empty", 0),
        ("middle", 70_000),
    ]
    random = torch.Generator().manual_seed(1)
    values = {key: {n: torch.randn(c, generator=random) for n, c in table} for key in ("param", "exp_avg")}
    buffers = {
        "scalar": torch.tensor(3),
        "mean": torch.arange(5, dtype=torch.bfloat16),
        "mask": torch.tensor([[True, False], [False, True]]),
        "none": torch.empty(0),
    }
    givers = (size + 1) // 2
    offers = []
    if rank < givers:
        mine = divide(table, rank, givers)
        tensors = {key: torch.cat([values[key][e.name][e.start : e.stop] for e in mine]) for key in values}
        offers = [Shard(mine, tensors, {"optimizer_step": 9}, buffers)]
    stripes = tuple(Extent(n, c * rank // size, c * (rank + 1) // size - c * rank // size) for n, c in table)
    wants = {"param": divide(table, 0, 1) if rank == size - 1 else stripes, "exp_avg": stripes}
    exchange = Exchange(offers, wants)
    for key, extents in wants.items():
        right = torch.cat([values[key][e.name][e.start : e.stop] for e in extents])
        assert torch.equal(exchange.read(key, extents), right)
        assert torch.equal(
            exchange.read(key, extents[::-1][:3]),
            torch.cat([values[key][e.name][e.start : e.stop] for e in extents[::-1][:3]]),
        )
    assert exchange.scalars == {"optimizer_step": 9}
    assert exchange.buffers.keys() == buffers.keys()
    return all(b.dtype == buffers[n].dtype and torch.equal(b, buffers[n]) for n, b in exchange.buffers.items())
