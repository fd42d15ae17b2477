"""The worker: a Ray actor that hosts one engine and takes part in one view after another.

Two lines lead to it. On the one, `prepare`, `warm_up` and `run_view` run one at a time on one thread: that is where
torch computes. On the other (`LINE`), the coordinator and other workers reach it while it computes.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import get_current_placement_group

from shoal.data.mixture import Mixture
from shoal.errors import TaskError
from shoal.job import Job, by_value
from shoal.membership.messages import Held, Told, ViewEnd, ViewOrder
from shoal.membership.view import MemberId
from shoal.orphans import end_with

LINE = "line"
LINE_THREADS = 6
ENDS_KEPT = 8
"""How many views back a worker can tell a restarted coordinator what it did there."""


@dataclass(frozen=True, slots=True)
class Outfit:
    """What a worker needs to know of the run, whatever the view."""

    member: MemberId
    job: bytes
    """The job, pickled by value."""
    checkpoint_uri: str
    export_uri: str
    validation_samples: int
    """0: there is nothing to evaluate on."""
    coordinator: str
    """Name of the coordinator's actor: a worker outlives its restart, and ends when it is gone for good."""
    mixture: Mixture | None = None
    """Which source each sample is of; None: there is one."""


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the coordinator wants to know of a worker that is ready."""

    member: MemberId
    node: str
    address: str
    """Of its node, as Ray knows it."""
    pid: int
    device: str
    rendezvous: str
    """`host:port` of the store by which a view whose first member this is finds together."""
    model: dict[str, Any]
    """`digest`, `parameters` (table of name, elements, shape)."""
    identity: dict[str, str]
    """What must be the same on all workers of the run (`worker.identity`)."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a worker tells a coordinator that was restarted."""

    facts: WorkerFacts | None
    """None: it is not prepared yet."""
    order: ViewOrder | None
    """The view that it is in, or was in last."""
    told: Told
    """What it was told in that view."""
    ends: tuple[ViewEnd, ...]
    """How its last views ended for it, as far as it came out of them well."""
    place: Any
    """Its placement group."""


@dataclass(frozen=True, slots=True)
class Links:
    """The other actors, as a member reaches them in one view."""

    coordinator: Any
    feed: Any
    peers: Mapping[MemberId, Any]
    """The members' actors."""


class Worker:
    """One engine in one process."""

    def __init__(self, outfit: Outfit) -> None:
        end_with(outfit.coordinator, "shoal")
        self._outfit = outfit
        self._facts: WorkerFacts | None = None
        self._order: ViewOrder | None = None
        self._life: Any = None
        self._cuts: set[int] = set()
        self._ends: dict[int, ViewEnd | Exception] = {}
        self._ended = threading.Condition()

    # On the computing thread -------------------------------------------------------------------------------------

    def prepare(self) -> WorkerFacts:
        """Import, unpickle the job, build the model. Raises TaskError if the user's code fails."""
        try:
            self._job: Job = by_value.loads(self._outfit.job)
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's imports: whatever fails is theirs
            raise TaskError(
                f"the job could not be unpickled on worker {self._outfit.member}: {error}\n{traceback.format_exc()}"
            ) from None
        from shoal.engines.determinism import prepare_process

        # Before torch is there: some of it is read at import.
        prepare_process(self._job.numerics, max(1, int(self._job.workers.cpus)))
        import torch

        from shoal.engines import make_engine
        from shoal.engines.arithmetic import arithmetic
        from shoal.engines.factory import model_facts
        from shoal.engines.garbage import collect
        from shoal.worker.group import open_store
        from shoal.worker.identity import identity_of
        from shoal.worker.life import Estate
        from shoal.worker.snapshots import Snapshots

        device = torch.device("cuda", 0) if self._job.workers.gpus else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self._estate = Estate(make_engine(self._job, device), Snapshots(self._outfit.member))
        collect(settle=True)  # here nobody waits for it; a view's end then has little to look at
        address = ray.util.get_node_ip_address()
        self._store, rendezvous = open_store(address)
        model = model_facts(self._estate.engine.model)
        bits = arithmetic(device) if self._job.numerics == "exact" else None
        self._facts = WorkerFacts(
            member=self._outfit.member,
            node=ray.get_runtime_context().get_node_id(),
            address=address,
            pid=os.getpid(),
            device=str(device),
            rendezvous=rendezvous,
            model=model,
            identity=identity_of(model["digest"], bits),
        )
        return self._facts

    def warm_up(self, feed: Any, position: int) -> None:
        """One dry step on the samples from `position` on, alone: what only the first step costs is paid before the
        others have to wait for it. Leaves no trace in the state."""
        from shoal.data.reader import train_reader
        from shoal.worker.warming import dry_step

        assert self._facts is not None, "prepare() comes first"
        dry_step(
            self._estate.engine, self._job, self._outfit.member, self._store, self._facts.rendezvous,
            train_reader(feed, self._outfit.mixture), position,
        )  # fmt: skip

    def run_view(self, order: ViewOrder, links: Links) -> ViewEnd:
        """Take part in a view from its forming to its end; says what this member then holds.

        Raises TaskError (the user's code), CheckpointError (state that cannot be used) and DataError. A peer that is
        gone is no error of this member's: its end says `broken`.
        """
        from shoal.worker.life import Life

        self._order = order
        self._life = Life(order, links, self._outfit, self._job, self._estate)
        try:
            end: ViewEnd | Exception = self._life.live(self._store, self._was_cut)
        except Exception as error:  # noqa: BLE001 - kept for a coordinator that asks later, and raised all the same
            end = error
        with self._ended:
            self._ends = dict(list(self._ends.items())[1 - ENDS_KEPT :]) | {order.view.number: end}
            self._ended.notify_all()
        if isinstance(end, Exception):
            raise end
        return end

    def _was_cut(self, view: int) -> bool:
        return view in self._cuts

    # On the line -------------------------------------------------------------------------------------------------

    @ray.method(concurrency_group=LINE)
    def cut(self, view: int) -> None:
        """The view is over: make whatever waits for its members fail at once."""
        from shoal.worker.group import cut_group

        self._cuts.add(view)
        life = self._life
        if life is not None and life.order.view.number == view:
            life.cut()
        cut_group(view)

    @ray.method(concurrency_group=LINE)
    def keep(self, name: Held, parcel: Any) -> float:
        """Keep a copy of another member's shard; returns the processor seconds that it took from this one."""
        from shoal.worker.snapshots import unpack

        begun = time.thread_time()
        self._estate.snapshots.keep(name, unpack(parcel))
        return time.thread_time() - begun

    @ray.method(concurrency_group=LINE)
    def held(self) -> tuple[Held, ...]:
        """The snapshots that it keeps by now: a copy may come after the word with which a view ended."""
        return self._estate.snapshots.held

    @ray.method(concurrency_group=LINE)
    def standing(self) -> Standing:
        """Where this worker stands."""
        told = self._life.told if self._life is not None else Told()
        ends = tuple(e for e in self._ends.values() if isinstance(e, ViewEnd))
        return Standing(self._facts, self._order, told, ends, get_current_placement_group())

    @ray.method(concurrency_group=LINE)
    def stay(self) -> None:
        """Never returns: whoever waits for it learns at once when this process is gone."""
        threading.Event().wait()

    @ray.method(concurrency_group=LINE)
    def view_end(self, view: int) -> ViewEnd:
        """How view `view` ended here; waits until it has. Raises what `run_view` raised."""
        with self._ended:
            self._ended.wait_for(lambda: view in self._ends)
            end = self._ends[view]
        if isinstance(end, Exception):
            raise end
        return end
