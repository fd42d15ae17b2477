"""What members and the coordinator say to each other. Plain values that survive pickling."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.membership.leasing import End
from shoal.membership.view import Lease, MemberId, View
from shoal.optim.noise import NO_PARTS, Parts


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
    snapshot_s: float = 0.0
    """What training waited for the snapshot after this step; 0 if there was none."""
    samples: str = ""
    """Digest of the bytes of the samples that this member used, 16 hex digits per virtual shard, in shard order; of all
    members' samples where `whole`."""
    sources: tuple[tuple[int, float], ...] = ()
    """Of a mixture, source by source: (samples that this member had of it, sum of their losses)."""
    progress: float = 0.0
    """Share of the budget that is used when it is done, as its lease said."""
    whole: bool = False
    """True: `losses`, `samples` and `parts` are those of all virtual shards, not only of this member's."""
    parts: Parts = NO_PARTS
    """What the gradients of single passes tell of their noise."""


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
class SnapshotKept:
    """A member's word that its snapshot of `step` lies with its buddy."""

    step: int
    seconds: float = 0.0
    """Of processor time, on both sides: taken from the training where there is no core to spare."""
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Entered:
    """A member's word that it has formed the view's group and holds the state. Seconds on its own clock."""

    form_s: float
    state_s: float
    idle_s: float = 0.0
    """Since the end of its last step; 0: it has done none before."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a member is in its work: what tells a slow member from a stuck one."""

    step: int = 0
    """The step it works on."""
    ticks: int = 0
    """Grows with every micro-batch, update, evaluated batch and phase."""
    doing: str = ""
    """One of: forming, state, data, compute, update, evaluate, snapshot, checkpoint, export."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a worker's energy meter says."""

    joules: float
    """Since the worker's beginning."""
    source: str
    """As `tracking.energy` names it."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Everything a member has to say that is not acknowledged yet, in order."""

    member: MemberId
    view: int
    steps: tuple[StepReport, ...] = ()
    evaluations: tuple[EvaluationReport, ...] = ()
    written: tuple[ShardWritten, ...] = ()
    snapshots: tuple[SnapshotKept, ...] = ()
    progress: Progress = Progress()
    entered: Entered | None = None
    reading: Reading | None = None
    leaving: str | None = None
    """Why its process is about to end, and so the member wants to leave; said in every word from then on."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The coordinator's answer: further leases, and where the view ends if that is known."""

    leases: tuple[Lease, ...] = ()
    end: End | None = None
    """Where the view ends and what to do then; None: not known yet."""
    committed: int = 0
    """Everything up to this step is committed: reports of it need not be kept, nor snapshots before the newest one that
    is not beyond it."""
    incarnation: int = 0
    """Which life of the coordinator says this; a new one has heard nothing yet."""
    over: bool = False
    """The run has gone on without this view: whoever is still in it leaves it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a member remembers of the coordinator's words in a view, for one that was restarted."""

    until: int = 0
    """The last step that was leased to it; 0: none yet."""
    snapshots: tuple[int, ...] = ()
    """The last of the leased steps that are snapshots."""
    progress: tuple[tuple[int, float], ...] = ()
    """(step, progress) of the leased steps that were not committed when it heard last."""
    end: End | None = None


@dataclass(frozen=True, slots=True)
class Fresh:
    """The state is the initial weights."""

    step: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """The state is a durable checkpoint."""

    step: int
    uri: str


@dataclass(frozen=True, slots=True)
class InMemory:
    """The state lies in members' memory, as it was after `step`."""

    step: int
    gives: tuple[tuple[MemberId, tuple[MemberId, ...]], ...]
    """(member of the new view, owners in the view where the state was made whose part it holds). Every part once for
    sharded engines; for replicated ones every member that is up to date gives itself."""
    view: int = 0
    """Number of the view in which the state was made: a snapshot is known by its owner, this view and its step."""


Source = Fresh | Stored | InMemory


@dataclass(frozen=True, slots=True)
class ViewOrder:
    """All that a member needs to enter a view."""

    view: View
    member: MemberId
    address: str
    """`host:port` of the rendezvous store, which lives on a member."""
    source: Source
    buddy: MemberId | None = None
    """Who keeps the copy of this member's snapshots; None: nobody (replicated, or alone)."""
    evaluate: bool = False
    """The evaluation of the state at the view's beginning is still owed."""
    checkpoint: bool = False
    """The checkpoint of the state at the view's beginning is still owed."""

    @property
    def first_step(self) -> int:
        return self.source.step + 1


@dataclass(frozen=True, slots=True, order=True)
class Held:
    """A snapshot in a worker's memory: the part of `owner` of the state after `step`, as it was spread over `view`.

    The view belongs to the name: after a rollback the same step is done, and kept, again in another division.
    """

    owner: MemberId
    view: int
    step: int


@dataclass(frozen=True, slots=True)
class ViewEnd:
    """A member's word that it is out of a view, its process well, and what it holds."""

    member: MemberId
    view: int
    step: int
    """Steps applied to its live state (replicated); sharded engines let go of theirs."""
    broken: str | None = None
    """Why its collectives failed; None: the view ended at its boundary."""
    stale: bool = False
    """True: it has no usable live state (it never took one over, or it is sharded)."""
    held: tuple[Held, ...] = ()
    """All snapshots that it keeps, its own and others'. Copies may come after its end: whoever decides asks again."""
    made_in: int | None = None
    """View in which its live state was made or taken over (replicated); None: `view`. A member whose view broke before
    it began to take over the state still has its old one, of an earlier view, and is not stale."""
    reports: Reports | None = None
    """What was not acknowledged yet."""
