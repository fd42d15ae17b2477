"""What a worker is told about the run that it serves, and what it tells of itself: plain values, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from shoal.data.mixture import Mixture
from shoal.job import Job
from shoal.logs import Style
from shoal.membership.messages import Reading, Told, ViewEnd, ViewOrder
from shoal.membership.view import MemberId


@dataclass(frozen=True, slots=True)
class Kind:
    """What cannot be changed in a process once torch has computed in it: another kind needs another process."""

    numerics: Literal["fast", "exact"]
    """Libraries read at their first call whether they may choose their kernels by chance."""
    threads: int
    """Of one operation. Where bits count, another number adds in another order."""
    gpu: bool
    """DeepSpeed decides at its import what it computes on."""

    @classmethod
    def of(cls, job: Job) -> Kind:
        """What `job` needs."""
        return cls(job.numerics, max(1, int(job.workers.cpus)), bool(job.workers.gpus))

    def __str__(self) -> str:
        return f"{self.numerics}, {self.threads} threads, {'GPU' if self.gpu else 'CPU'}"


@dataclass(frozen=True, slots=True)
class Outfit:
    """What a worker needs to know of the run, whatever the view. It is put on by `Worker.prepare`."""

    run: str
    """Tells what is meant for this run, and this launch of it, from what comes late from another one."""
    run_id: str
    log_format: Style
    """How it writes its log lines."""
    member: MemberId
    job: bytes
    """The job, pickled by value."""
    token: bytes = field(repr=False)
    """What the processes of this launch show each other (`worker.credentials`)."""
    kind: Kind
    checkpoint_uri: str
    export_uri: str
    validation_samples: int
    """0: there is nothing to evaluate on."""
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
    labels: dict[str, str]
    """Of its node; some say what it costs (`tracking.prices`)."""
    reading: Reading
    """Of its energy meter, when it was ready."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a worker stands: for a coordinator, or a pool, that was restarted."""

    run: str | None
    """The run that it serves; None: it is at rest."""
    member: MemberId
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
    keepers: Mapping[MemberId, Any]
    """The actors of those to whom it brings copies, as far as they are known; of others the coordinator is asked."""
