"""What members and the coordinator say to each other. Plain values that survive pickling."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.membership.leasing import End
from shoal.membership.view import Lease, MemberId, View


@dataclass(frozen=True, slots=True)
class StepReport:
    """A member's word that it has applied `step`.

    `losses` holds (virtual shards covered, mean loss over them), in shard order; `grad_norm` is global and equal on
    all members. Times are seconds on the member's own clock.
    """

    step: int
    losses: tuple[tuple[int, float], ...]
    grad_norm: float
    lr: float
    step_s: float
    data_wait_s: float = 0.0
    compute_s: float = 0.0
    communicate_s: float = 0.0
    update_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """A member's part of the evaluation after `step`: sums over its samples (mean times samples), by metric."""

    step: int
    samples: int
    sums: dict[str, float]
    seconds: float


@dataclass(frozen=True, slots=True)
class ShardWritten:
    """A member's word that its part of the checkpoint after `step` is durable (or why it is not)."""

    step: int
    files: tuple[dict, ...] = ()
    """`FileEntry` values of the manifest, as dictionaries."""
    scalars: dict = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Reports:
    """Everything a member has to say since its last word, in order."""

    member: MemberId
    view: int
    steps: tuple[StepReport, ...] = ()
    evaluations: tuple[EvaluationReport, ...] = ()
    written: tuple[ShardWritten, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """The coordinator's answer: further leases, and where the view ends if that is known."""

    leases: tuple[Lease, ...] = ()
    end: End | None = None
    """Where the view ends and what to do then; None: not known yet."""


@dataclass(frozen=True, slots=True)
class ViewOrder:
    """All that a member needs to enter a view."""

    view: View
    member: MemberId
    address: str
    """`host:port` of the rendezvous store."""
    first_step: int
    checkpoint: str | None = None
    """URI of the checkpoint to load before the first step; None: fresh weights, or the state at hand."""
