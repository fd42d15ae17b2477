"""What a run shows while it goes, and what it leaves: plain values between the launcher and whoever displays them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Where a run stands at one moment. None: not known (yet)."""

    phase: str
    """One word: starting, waiting, training, evaluating, checkpointing, re-forming, stopping, finishing."""
    step: int = 0
    """Steps done."""
    total_steps: int | None = None
    loss: float | None = None
    """Training loss of the last committed step."""
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    workers: int = 0
    """Members of the current view."""
    wanted: int | None = None
    """Workers that the job would like to have."""
    eta_s: float | None = None
    """Seconds to the end of the budget at the present speed."""
    evaluation: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation, for example `{"val/loss": 1.9}`."""
    message: str = ""
    """What the run waits for, if it waits."""
    news: int = 0
    """How many news there are so far: what a follower passes as `after` the next time."""


State = Literal["starting", "ready", "member", "leaving", "spare"]
"""starting: imports and builds the model. ready: warmed up, waits for the next view. member: of the current view.
leaving: a member whose leave was announced. spare: ready, but the view is as large as it may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberStatus:
    """One worker of a run at one moment. None: not known, or not (yet) a member."""

    member: str
    state: State
    rank: int | None = None
    node: str = ""
    """Ray's id of its node."""
    address: str = ""
    """The node's address."""
    pid: int | None = None
    device: str = ""
    """`cpu`, `cuda:0`."""
    virtual_shards: int = 0
    """How many of them it computes in each step."""
    step: int | None = None
    """The step it works on."""
    doing: str = ""
    """What it does there, as in `membership.messages.Progress`."""
    step_s: float | None = None
    """Seconds that its recent steps took, from one end to the next."""
    compute_s: float | None = None
    """Seconds of computing per virtual shard and step, which is what tells a straggler."""
    straggler: float | None = None
    """How many times slower than its peers it has been for long; None: it keeps up."""
    since: float | None = None
    """When it came into this state, in Unix seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended and what it left."""

    status: Literal["finished", "failed", "stopped"]
    run_id: str
    folder: str
    """Path of the run folder."""
    step: int
    """Steps done."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last values, for example `{"train/loss": 1.8, "val/loss": 1.9}`."""
    checkpoint: str | None = None
    """URI of the last durable checkpoint."""
    model: str | None = None
    """URI of the exported model."""
    record: str | None = None
    """Link or path to the record of this run."""
    cost: Mapping[str, Any] = field(default_factory=dict)
    """What it used over all its launches, as `cost` in its `run.json`: seconds, joules and dollars by phase."""
    error: str | None = None
    """Why it failed: one message; the user's own traceback if their code raised."""
    exit_code: int = 0
    """What the command line leaves with."""


class Display(Protocol):
    """Passive observer of one run. The launcher calls these from one thread; none of them may raise or take long."""

    def started(self, info: Mapping[str, Any]) -> None:
        """The run exists. `info`: run_id, folder, workers, record, total_steps, ... (whatever is known)."""
        ...

    def status(self, status: RunStatus) -> None:
        """Called about twice per second."""
        ...

    def event(self, kind: str, text: str) -> None:
        """Something happened: view, join, leave, loss, hang, resume, evaluation, checkpoint, warning, stopping or info.

        join, leave, loss and hang come when the change is over, and say what it cost.
        """
        ...

    def finished(self, outcome: Outcome) -> None:
        """The last call."""
        ...
