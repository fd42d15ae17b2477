"""One member's life in one view: form the group, come by the state, train, and leave in good order or in bad."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import torch

from shoal.data.augment import augmenter
from shoal.data.reader import SliceReader, train_reader
from shoal.engines.factory import model_facts
from shoal.engines.protocol import Engine
from shoal.engines.task_module import from_collective
from shoal.errors import TaskError, WorkerLost
from shoal.job import Job
from shoal.membership.leasing import EndKind, beat_s
from shoal.membership.messages import (
    Entered,
    Fresh,
    Grant,
    Held,
    InMemory,
    Reading,
    Reports,
    Stored,
    Told,
    ViewEnd,
    ViewOrder,
)
from shoal.membership.view import MemberId
from shoal.state.exchange import take_state_from_peers
from shoal.state.export import export_model
from shoal.state.reader import CheckpointReader
from shoal.state.writer import AsyncShardWriter
from shoal.tracking.energy import Meter, cpu_estimate, worker_meter
from shoal.worker.courier import Courier
from shoal.worker.evaluation import Evaluator
from shoal.worker.group import cut_group, dissolve_group, form_group, prove_groups
from shoal.worker.loader import Loader
from shoal.worker.loop import Ends, Loop
from shoal.worker.selecting import Selector
from shoal.worker.snapshots import Parcel, Sender, Snapshots

if TYPE_CHECKING:
    from shoal.worker.outfit import Links, Outfit

SYNC_S = 20.0
"""Longest wait for one answer of the coordinator."""
HAND_OVER_S = 30.0
"""How long a member that leaves a view waits for its snapshot to reach the keeper, who may hang."""
COORDINATOR_S = 600.0
"""How long a coordinator may be out of reach, for example while it, or the cluster's GCS, is being restarted. Of one
that is gone for good `orphans` learns sooner."""


@dataclass(slots=True)
class Estate:
    """What a worker has for its whole life, and hands from one view to the next."""

    engine: Engine
    snapshots: Snapshots
    meter: Meter
    leaving: Callable[[], str | None] = lambda: None
    """Why its process is to end; None: nobody has told it to."""
    usable: bool = False
    """Whether the engine's state is that of a step of the run."""
    made_in: int | None = None
    """The view in which it was made or taken over."""
    worked_at: float | None = None
    """When its last step ended, on the clock of `time.perf_counter`."""

    def reading(self) -> Reading:
        """What the worker's energy meter says."""
        return Reading(self.meter.joules(), self.meter.source)


class Life:
    """What exists for one member as long as one view does."""

    def __init__(
        self, order: ViewOrder, links: Links, outfit: Outfit, job: Job, estate: Estate, leave: Callable[[], None]
    ) -> None:
        """`leave` cuts this view from any thread; called when the run has gone on without it."""
        self.order = order
        self._estate = estate
        self._links, self._outfit, self._job = links, outfit, job
        self._engine, self._snapshots = estate.engine, estate.snapshots
        self._courier = Courier(
            order.member, order.view.number, self._sync, patience_s=COORDINATOR_S, beat_s=beat_s(order.view.size)
        )
        self._loader = Loader(self._courier.leases, self._read(), augmenter(job))
        self._writer = AsyncShardWriter()
        self._sender = None if estate.engine.keeps_state else Sender(self._send, self._courier.speak)
        self._loop = self._make_loop()
        self._courier.progress = self._loop.progress
        self._courier.poll = self._poll
        self._courier.reading = estate.reading
        self._courier.leaving = estate.leaving
        self._courier.leave = leave

    @property
    def told(self) -> Told:
        """What the coordinator has said to this member in this view."""
        return self._courier.told

    def cut(self) -> None:
        """From another thread: nothing in this view will come any more, neither from peers nor from the feed."""
        self._loader.close(WorkerLost("the view was cut"))

    def live(self, store: Any, was_cut: Callable[[int], bool]) -> ViewEnd:
        """See `Worker.run_view`."""
        order, broken = self.order, None
        begun = time.perf_counter()
        try:
            self._courier.start()
            self._enter(store, begun)
            self._loader.start()
            self._loop.run()
            self._finish_writing()
        except Exception as error:
            if not (was_cut(order.view.number) or from_collective(error)) or _is_users(error, was_cut, order):
                self._close()
                raise
            # Closing our own connections makes the neighbours' collectives fail, and theirs the next ones'.
            cut_group(order.view.number)
            broken = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return self._leave(broken)

    def _enter(self, store: Any, begun: float) -> None:
        order, engine, view = self.order, self._engine, self.order.view
        rank = view.rank(order.member)
        if isinstance(order.source, Fresh):
            self._estate.usable = False
            engine.reset()
            self._snapshots.clear()
        # Twice: the coordinator, who can tell which member hangs, must come before the collectives, who cannot.
        form_group(order, engine.device, store if rank == 0 else None, 2 * self._job.workers.silence_s)
        engine.form(rank, view.size, view.bounds(self._job.batch.virtual_shards))
        prove_groups()
        formed = time.perf_counter()
        self._take_state()
        now, before = time.perf_counter(), self._estate.worked_at
        self._courier.entered(Entered(formed - begun, now - formed, now - before if before is not None else 0.0))

    def _take_state(self) -> None:
        order, engine, source = self.order, self._engine, self.order.source
        up_to_date = engine.keeps_state and isinstance(source, InMemory) and order.member in dict(source.gives)
        self._estate.usable = up_to_date  # until here a view that broke has cost the others' state, not this one's
        if isinstance(source, InMemory):
            take_state_from_peers(
                engine,
                source,
                order.member,
                order.view,
                lambda owner, step: self._snapshots.get(Held(owner, source.view, step)),
            )
        elif isinstance(source, Stored):
            self._snapshots.clear()
            reader = CheckpointReader(source.uri)
            facts = model_facts(engine.model)
            reader.check_model(facts["digest"], facts["parameters"])
            reader.verify(order.view.rank(order.member), order.view.size)
            engine.write_state(reader.read, reader.manifest.scalars, reader.buffers())
        self._estate.usable, self._estate.made_in = True, order.view.number
        assert engine.applied == source.step, f"the state is that of step {engine.applied}, not of {source.step}"

    def _finish_writing(self) -> None:
        """Wait for checkpoints that are being written, unless the run goes on: then nobody waits for slow storage, and
        what was not written in time is owed by the next view."""
        end = self._courier.end
        if end is None or end.kind is not EndKind.CHANGE or end.checkpoint:
            self._writer.drain(self._job.workers.silence_s)

    def _leave(self, broken: str | None) -> ViewEnd:
        """Let go of the view; what is on its way to the buddy of a member that leaves in good order arrives first."""
        order, applied = self.order, self._engine.applied
        self._estate.worked_at = self._loop.worked_at or self._estate.worked_at
        self._close()
        if self._sender is not None:
            if broken is None:
                self._sender.drain(HAND_OVER_S)
            self._sender.close()
        return ViewEnd(
            member=order.member,
            view=order.view.number,
            step=applied,
            broken=broken,
            stale=not self._estate.usable or not self._engine.keeps_state,
            made_in=self._estate.made_in,
            held=self._snapshots.held,
            reports=self._courier.close(),
        )

    def _close(self) -> None:
        self._loader.close()
        self._engine.leave()
        dissolve_group()

    def _make_loop(self) -> Loop:
        order, outfit, job = self.order, self._outfit, self._job
        read = SliceReader(self._links.feed).read
        evaluator = (
            Evaluator(
                samples=outfit.validation_samples,
                batch=job.batch.shard_size,
                rank=order.view.rank(order.member),
                size=order.view.size,
                read=lambda start, stop: read("validation", [(start, stop)])[0],
            )
            if outfit.validation_samples
            else None
        )
        return Loop(
            job=job,
            engine=self._engine,
            order=order,
            ends=Ends(outfit.checkpoint_uri, self._export),
            loader=self._loader,
            courier=self._courier,
            evaluator=evaluator,
            mixture=outfit.mixture,
            selector=Selector(job, order.view.bounds(job.batch.virtual_shards), order.view.rank(order.member)),
            writer=self._writer,
            snapshots=self._snapshots,
            sender=self._sender,
        )

    def _read(self) -> Any:
        return train_reader(self._links.feed, self._outfit.mixture)

    def _poll(self) -> list[Any]:
        return [*self._writer.poll(), *(self._sender.poll() if self._sender is not None else ())]

    def _sync(self, reports: Reports) -> Grant:
        return ray.get(self._links.coordinator.sync.remote(self._outfit.run, reports), timeout=SYNC_S)

    def _send(self, keeper: MemberId | None, step: int, parcel: Parcel) -> float:
        to = keeper or self.order.buddy
        if to is None:
            return 0.0
        name = Held(self.order.member, self.order.view.number, step)
        actor = self._links.keepers.get(to)
        if actor is None:  # at the view's end, and seldom: another one keeps the copy
            actor = ray.get(self._links.coordinator.keeper.remote(self._outfit.run, to), timeout=SYNC_S)
        return ray.get(actor.keep.remote(self._outfit.run, name, parcel))

    def _export(self, engine: Any) -> None:
        parameters = engine.full_parameters()
        if self.order.view.rank(self.order.member) == 0:
            export_model(
                parameters, dict(engine.model.named_buffers()), self._job.task, engine.model, self._outfit.export_uri
            )


def energy_meter(job: Job, begun: float) -> Meter:
    """The meter of this worker, which began when its process had used `begun` processor seconds."""
    seen = range(torch.cuda.device_count()) if job.workers.gpus else ()
    devices = [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in seen]
    want = job.workers
    estimate = cpu_estimate(job.cost.watts_per_core, begun)
    return worker_meter(estimate, cpus=want.cpus, gpus=want.gpus, devices=devices)


def _is_users(error: Exception, was_cut: Callable[[int], bool], order: ViewOrder) -> bool:
    """Whether the user's own code failed, and not because its view was cut under it."""
    return isinstance(error, TaskError) and not was_cut(order.view.number)
