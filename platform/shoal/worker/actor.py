"""The worker: a Ray actor that hosts one engine and takes part in one view after another."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

from shoal.errors import TaskError
from shoal.job import Job, by_value
from shoal.membership.messages import Grant, Reports, ViewOrder
from shoal.membership.view import MemberId


@dataclass(frozen=True, slots=True)
class Outfit:
    """What a worker needs to know of the run, whatever the view."""

    member: MemberId
    job: bytes
    """The job, pickled by value."""
    total_steps: int
    checkpoint_uri: str
    export_uri: str
    validation_samples: int
    """0: there is nothing to evaluate on."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the coordinator wants to know of a worker that is ready."""

    member: MemberId
    node: str
    address: str
    pid: int
    device: str
    model: dict[str, Any]
    """`digest`, `parameters` (table of name, elements, shape)."""


class Worker:
    """One engine in one process. Methods run one at a time, on one thread, in the order they are called."""

    def __init__(self, outfit: Outfit) -> None:
        import ray

        self._outfit = outfit
        self._address = ray.util.get_node_ip_address()
        self._node = ray.get_runtime_context().get_node_id()
        self._store: Any = None

    def prepare(self) -> WorkerFacts:
        """Import, unpickle the job, build the model. Raises TaskError if the user's code fails."""
        import os

        import torch

        from shoal.engines import make_engine
        from shoal.engines.factory import model_facts

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        try:
            self._job: Job = by_value.loads(self._outfit.job)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's imports: whatever fails is theirs
            raise TaskError(
                f"the job could not be unpickled on worker {self._outfit.member}: {error}\n{traceback.format_exc()}"
            ) from None
        device = torch.device("cuda", 0) if self._job.workers.gpus else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._engine = make_engine(self._job, device)
        return WorkerFacts(
            member=self._outfit.member,
            node=self._node,
            address=self._address,
            pid=os.getpid(),
            device=str(device),
            model=model_facts(self._engine.model),
        )

    def open_store(self, size: int) -> str:
        """Host the rendezvous of the coming view; returns `host:port`."""
        from shoal.worker.group import open_store

        self._store, address = open_store(self._address, size, self._job.workers.start_s)
        return address

    def run_view(self, order: ViewOrder, coordinator: Any, feed: Any) -> int:
        """Take part in a view from its forming to its end; returns the last step done.

        Raises TaskError (the user's code), CheckpointError (state that cannot be used), and whatever the collectives
        raise when a peer is gone.
        """
        from shoal.worker.group import dissolve_group, form_group

        job, engine = self._job, self._engine
        if order.checkpoint is None:
            engine.reset()
        hosts = self._store if order.view.rank(order.member) == 0 else None
        # Twice: the coordinator, who can tell which member hangs, must come before the collectives, who cannot.
        form_group(order, engine.device, hosts, 2 * job.workers.silence_s)
        try:
            engine.form(order.view.rank(order.member), order.view.size)
            step = self._restore(order)
            assert step == order.first_step - 1, (
                f"the state is that of step {step}, the view begins at {order.first_step}"
            )
            return self._train(order, coordinator, feed, step)
        finally:
            engine.leave()
            dissolve_group()

    def _restore(self, order: ViewOrder) -> int:
        if order.checkpoint is None:
            return 0
        from shoal.engines.factory import model_facts
        from shoal.state.reader import CheckpointReader

        reader = CheckpointReader(order.checkpoint)
        facts = model_facts(self._engine.model)
        reader.check_model(facts["digest"], facts["parameters"])
        reader.verify(order.view.rank(order.member), order.view.size)
        self._engine.write_state(reader.read, reader.manifest.scalars, reader.buffers())
        return reader.manifest.step

    def _train(self, order: ViewOrder, coordinator: Any, feed: Any, step: int) -> int:
        import ray

        from shoal.data.reader import SliceReader
        from shoal.state.writer import AsyncShardWriter
        from shoal.worker.courier import Courier
        from shoal.worker.evaluation import Evaluator
        from shoal.worker.loader import Loader
        from shoal.worker.loop import Loop, Place

        job, outfit = self._job, self._outfit
        place = Place(order.view, order.member, outfit.total_steps, outfit.checkpoint_uri)
        reader = SliceReader(feed)
        writer = AsyncShardWriter()

        def sync(reports: Reports) -> Grant:
            return ray.get(coordinator.sync.remote(reports), timeout=job.workers.silence_s)

        courier = Courier(order.member, order.view.number, sync, writer.poll)
        loader = Loader(courier.leases, lambda ranges: reader.read("train", ranges))
        evaluator = (
            Evaluator(
                samples=outfit.validation_samples,
                batch=job.batch.shard_size,
                rank=place.rank,
                size=order.view.size,
                read=lambda start, stop: reader.read("validation", [(start, stop)])[0],
            )
            if outfit.validation_samples
            else None
        )
        courier.start()
        loader.start()
        try:
            last = Loop(job, self._engine, place, loader, courier, evaluator, writer, self._export).run(step)
            writer.drain(job.workers.silence_s)
        finally:
            courier.close()
        return last

    def _export(self, engine: Any) -> None:
        import torch.distributed as dist

        from shoal.state.export import export_model

        parameters = engine.full_parameters()
        if dist.get_rank() == 0:
            export_model(
                parameters, dict(engine.model.named_buffers()), self._job.task, engine.model, self._outfit.export_uri
            )
