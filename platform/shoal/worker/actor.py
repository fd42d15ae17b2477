"""The worker: a Ray actor that hosts one engine at a time, and takes part in one view after another.

Two lines lead to it. On the one, `prepare`, `warm_up`, `run_view` and `rest` run one at a time on one thread: that is
where torch computes. On the other (`LINE`), the coordinator and other workers reach it while it computes. Each call
says which run it means: what comes late from a run that this worker has left is not heard.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group

from shoal import logs
from shoal.errors import StaleProcess, TaskError, WorkerLost
from shoal.job import Job, by_value
from shoal.membership.messages import Held, Reading, Told, ViewEnd, ViewOrder
from shoal.orphans import end_with
from shoal.worker.outfit import Kind, Links, Outfit, Standing, WorkerFacts
from shoal.worker.stint import Stint
from shoal.worker.termination import Termination

LINE = "line"
LINE_THREADS = 8


class Worker:
    """One process. Serves one run after another; each is a stint."""

    def __init__(self, owner: str) -> None:
        """`owner`: name of the actor that it lives for. It outlives a restart of it, and ends when it is gone for
        good."""
        end_with(owner, "shoal")
        self._termination = Termination(self._is_needed)
        self._process: Any = None
        self._soiled = False
        """Whether the user's code has run here since the process was cleaned."""
        self._stint: Stint | None = None

    # On the computing thread -------------------------------------------------------------------------------------

    def warm_process(self, kind: Kind, *, sharded: bool = False) -> None:
        """Do what only the first stint in a process has to wait for: import torch, and DeepSpeed if `sharded`.

        Raises StaleProcess if this process is of another kind, or holds modules that have changed on disk since.
        """
        from shoal.worker.identity import changed_modules
        from shoal.worker.process import Process

        if self._process is None:
            self._process = Process(kind)
        if self._process.kind != kind:
            raise StaleProcess(f"this process is of the kind {self._process.kind}, not {kind}")
        if changed := changed_modules(self._process.loaded):
            raise StaleProcess(f"{', '.join(changed)} changed on disk after this process had imported it")
        self._process.import_engines(sharded=sharded)

    def prepare(self, outfit: Outfit) -> WorkerFacts:
        """Put on the outfit: unpickle the job, build the model. Whatever run was served before is forgotten.

        Raises TaskError if the user's code fails, StaleProcess if only a new process will do.
        """
        self.rest()
        # What it took to start this process belongs to the run for which it was started.
        begun = time.process_time() if self._process is not None else 0.0
        self.warm_process(outfit.kind)
        self._soiled = True
        logs.configure(outfit.log_format, run=outfit.run_id, worker=outfit.member)
        try:
            job: Job = by_value.loads(outfit.job)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's imports: whatever fails is theirs
            raise TaskError(
                f"the job could not be unpickled on worker {outfit.member}: {error}\n{traceback.format_exc()}"
            ) from None

        from shoal.engines import make_engine
        from shoal.engines.arithmetic import arithmetic
        from shoal.engines.factory import model_facts
        from shoal.engines.garbage import collect
        from shoal.worker.group import open_store
        from shoal.worker.identity import identity_of
        from shoal.worker.life import Estate, energy_meter
        from shoal.worker.snapshots import Snapshots

        device = self._process.device
        meter = energy_meter(job, begun)
        estate = Estate(make_engine(job, device), Snapshots(outfit.member), meter, lambda: self._termination.asked)
        collect(settle=True)  # here nobody waits for it; a view's end then has little to look at
        address = ray.util.get_node_ip_address()
        model = model_facts(estate.engine.model)
        bits = arithmetic(device) if job.numerics == "exact" else None
        identity = identity_of(model["digest"], bits, self._process.loaded)
        store, rendezvous = open_store(address, outfit.token)
        facts = WorkerFacts(
            member=outfit.member,
            node=ray.get_runtime_context().get_node_id(),
            address=address,
            pid=os.getpid(),
            device=str(device),
            rendezvous=rendezvous,
            model=model,
            identity=identity,
            labels={name: str(said) for name, said in ray.get_runtime_context().get_node_labels().items()},
            reading=estate.reading(),
        )
        self._stint = Stint(outfit, job, estate, store, facts)
        return facts

    def warm_up(self, run: str, feed: Any, position: int, shard_size: int) -> None:
        """One dry step on `shard_size` samples from `position` on, alone: what only the first step costs is paid before
        the others have to wait for it. Leaves no trace in the state."""
        from shoal.data.reader import train_reader
        from shoal.worker.warming import dry_step

        stint = self._serving(run)
        dry_step(
            stint.estate.engine, stint.job, stint.outfit.member, stint.store, stint.facts.rendezvous,
            train_reader(feed, stint.outfit.mixture), (position, position + shard_size),
        )  # fmt: skip

    def run_view(self, run: str, order: ViewOrder, links: Links) -> ViewEnd:
        """Take part in a view from its forming to its end; says what this member then holds.

        Raises TaskError (the user's code), CheckpointError (state that cannot be used) and DataError. A peer that is
        gone is no error of this member's: its end says `broken`.
        """
        return self._serving(run).live(order, links)

    def rest(self) -> None:
        """Forget the run that was served: its engine, its model, its copies, its connections. The process stays warm.

        Raises if the process cannot be used any more, as after an error on a GPU.
        """
        stint, self._stint = self._stint, None
        if stint is None and not self._soiled:
            return
        if stint is not None:
            stint.close()
            del stint
        self._process.clean()
        self._soiled = False

    def _is_needed(self) -> bool:
        stint = self._stint
        return stint is not None and not stint.over.is_set()

    def _serving(self, run: str) -> Stint:
        stint = self._stint
        if stint is None or stint.outfit.run != run:
            raise WorkerLost(f"this worker does not serve {run}" + (" any more" if stint is None else ""))
        return stint

    # On the line -------------------------------------------------------------------------------------------------

    @ray.method(concurrency_group=LINE)
    def cut(self, run: str, view: int) -> None:
        """The view is over: make whatever waits for its members fail at once."""
        stint = self._stint
        if stint is not None and stint.outfit.run == run:
            stint.cut(view)

    @ray.method(concurrency_group=LINE)
    def dismiss(self) -> None:
        """Nothing more is wanted of this worker: a view that it is in is cut, so that `rest` need not wait for it."""
        stint = self._stint
        if stint is not None:
            stint.finish()

    @ray.method(concurrency_group=LINE)
    def keep(self, run: str, name: Held, parcel: Any) -> float:
        """Keep a copy of another member's shard; returns the processor seconds that it took from this one."""
        from shoal.worker.snapshots import unpack

        snapshots = self._serving(run).estate.snapshots
        begun = time.thread_time()
        snapshots.keep(name, unpack(parcel))
        return time.thread_time() - begun

    @ray.method(concurrency_group=LINE)
    def held(self, run: str) -> tuple[Held, ...]:
        """The snapshots that it keeps by now: a copy may come after the word with which a view ended."""
        return self._serving(run).estate.snapshots.held

    @ray.method(concurrency_group=LINE)
    def reading(self, run: str) -> tuple[Reading, str | None]:
        """What its energy meter says, and why its process is about to end, if it is: asked of workers that are in no
        view, and so do not say it by themselves."""
        return self._serving(run).estate.reading(), self._termination.asked

    @ray.method(concurrency_group=LINE)
    def out_of_sight(self, run: str, where: dict[str, str]) -> tuple[str, ...]:
        """Whom of these workers of the same run (name -> `host:port` of its rendezvous) this one does not reach."""
        from shoal.worker.sight import out_of_sight

        self._serving(run)
        return out_of_sight(where)

    @ray.method(concurrency_group=LINE)
    def clock(self) -> float:
        """What time it is on this node, in Unix seconds."""
        return time.time()

    @ray.method(concurrency_group=LINE)
    def standing(self) -> Standing:
        """Where this worker stands."""
        stint, place = self._stint, get_current_placement_group()
        if stint is None:
            return Standing(None, "", None, None, Told(), (), place)
        outfit = stint.outfit
        return Standing(outfit.run, outfit.member, stint.facts, stint.order, stint.told, stint.ends, place)

    @ray.method(concurrency_group=LINE)
    def stay(self, run: str | None) -> None:
        """Returns when this worker has left `run` (None: never). Whoever waits for it learns at once when this process
        is gone."""
        if run is None:
            threading.Event().wait()
        stint = self._stint
        if stint is not None and stint.outfit.run == run:
            stint.over.wait()

    @ray.method(concurrency_group=LINE)
    def view_end(self, run: str, view: int) -> ViewEnd:
        """How view `view` ended here; waits until it has. Raises what `run_view` raised."""
        return self._serving(run).end_of(view)
