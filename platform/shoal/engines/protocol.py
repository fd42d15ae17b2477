"""The one small protocol that every engine fulfils, and that one contract test holds them all to.

An engine owns a model, its optimizer and how both are spread over the members of a view. It knows nothing of Ray,
leases, files or the record. Life of an engine:

    engine = make_engine(job, device)         # builds the model; no process group needed
    engine.reset()                            # only before a view that starts from step 0 after an earlier one
    engine.form(rank, size, bounds)           # torch.distributed's default group is up and has this view's members
    engine.write_state(read, ...)             # optional: continue from a checkpoint or from peers
    for each lease:
        losses = engine.score(candidates)     # optional: to choose what to train on
        for i, (batch, share) in enumerate(micro_batches):
            loss = engine.micro_step(batch, share, last=i == len(micro_batches) - 1)
        norm = engine.update(lr)
    shard = engine.read_state()               # at any step boundary
    engine.leave()                            # the model stays warm; the group may go

What the numbers are, in every engine: the gradient of a step is the sum of share x gradient over all micro-batches of
all members, in fp32; a trainable parameter that no sample used has gradient zero (its moments and its decay go on);
the norm is that of the whole gradient before clipping; the update is that of the torch optimizer of the same name.
In `exact` numerics they are equal to the last bit in every engine and on any number of members; see docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from shoal.optim.noise import Parts
from shoal.state.layout import Extent, Shard
from shoal.tasks.base import Batch

ReadState = Callable[[str, Sequence[Extent]], torch.Tensor]
"""(key, extents) -> 1-D fp32 tensor of those elements, one after another. Raises CheckpointError if it lacks them."""


@dataclass(slots=True)
class StepTimes:
    """Seconds of the last step by part, on this member. On a GPU `update_s` is that of the step before."""

    compute_s: float = 0.0
    """Forward and backward."""
    communicate_s: float = 0.0
    """Reduction of gradients that was not hidden behind compute. ZeRO: what a forward or backward pass waits for in
    between counts as compute."""
    update_s: float = 0.0
    """Clipping and optimizer. ZeRO: also gathering the new parameters."""


class Engine(Protocol):
    """One member's training state and how it advances. All methods marked (collective) are called by all members of
    the view in the same order."""

    model: torch.nn.Module
    device: torch.device

    @property
    def times(self) -> StepTimes:
        """Seconds of the last step by part, on this member."""
        ...

    @property
    def applied(self) -> int:
        """Updates that the state has been through. A sharded engine counts on after `leave`, until another state is
        written or it is reset."""
        ...

    @property
    def equal_micro_batches(self) -> bool:
        """True if every member must run the same number of micro-batches per step (their passes are collective)."""
        ...

    @property
    def merges_shards(self) -> bool | None:
        """Whether virtual shards may share a forward pass: the task promises it, and the model was seen to draw no
        random numbers and to change no buffers. All members of a view say the same. None until the first update of a
        view with a new member: until then shards run one by one."""
        ...

    @property
    def keeps_state(self) -> bool:
        """True: the state outlives `leave` and is whole on every member (replicated). False: it is sharded and goes
        with the view, so that `write_state` must follow each `form` but the very first."""
        ...

    def form(self, rank: int, size: int, bounds: Sequence[int] | None = None) -> None:
        """Enter a view (collective). The default process group has `size` members and this one is `rank`.

        `bounds`: member r has the virtual shards [bounds[r], bounds[r + 1]), see `View.bounds`; default: an even
        division. In `exact` numerics the engine must know; the others take what comes.
        If no member has trained or taken over a state yet, all take rank 0's initial weights. Otherwise a replicated
        engine still has the state it left with, and a sharded one has none: `write_state` must follow.
        """
        ...

    def leave(self) -> None:
        """Let go of everything that is bound to the process group, also when that is broken or gone. A step that was
        not finished is forgotten. The model stays; so does the state of a replicated engine."""
        ...

    def reset(self) -> None:
        """Back to the initial weights and an empty optimizer, as freshly built. Between views only; not collective."""
        ...

    def score(self, batch: Batch) -> torch.Tensor:
        """The loss of each sample with the weights of now, [samples], on the device (collective if
        `equal_micro_batches`). Without gradients, in eval mode; leaves buffers and the step that is under way as they
        are. Only of a task that defines `Task.sample_losses`; raises TaskError if it fails.

        In `exact` numerics call it with one virtual shard's samples: the size of a batch decides bits.
        """
        ...

    def micro_step(
        self, batch: Batch, share: float, *, last: bool, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch whose gradient counts `share` of the global batch (0: padding).

        `weights` ([samples], fp32, on the device): the loss is the mean of weight x `Task.sample_losses`; None: the
        task's own mean. Returns the detached scalar loss, on the device. (Collective if `equal_micro_batches` or
        `last`.) Raises TaskError with the user's traceback if the task fails, or if its loss is not a scalar.
        """
        ...

    def update(self, lr: float) -> float:
        """Reduce, clip, apply (collective). Returns the global gradient norm before clipping.

        If the norm is not finite nothing is applied, and every member sees that same norm. A replicated engine applies
        a step wholly or not at all: if this raises because a peer is lost, nothing was applied here; if it returns,
        everything was, and the state is ahead of members for which it raised. Of a sharded engine that raised, the
        state is undefined.
        """
        ...

    def step_losses(self) -> tuple[tuple[int, float], ...]:
        """After `update`: (1, loss) for each virtual shard of the whole view, in order, equal on all members.

        Only in `exact` numerics, where the losses travel with the gradients; empty otherwise. Any single member's word
        is then enough to record the step.
        """
        ...

    def step_parts(self) -> Parts:
        """After `update`: the squared norms of the gradients of single passes, each the mean over its samples, and how
        many samples these were: of this member's passes; in `exact` numerics of all virtual shards, summed in their
        order, equal on all members."""
        ...

    def note(self, numbers: Sequence[int]) -> None:
        """Before `update`: a 64-bit number for each virtual shard of this member in this step. In `exact` numerics they
        travel with the gradients; otherwise they are forgotten."""
        ...

    def step_notes(self) -> tuple[int, ...]:
        """After `update`: what all members noted, in the order of the virtual shards. Empty where `step_losses` is."""
        ...

    @property
    def sample_losses(self) -> torch.Tensor | None:
        """Loss of each sample of the last `micro_step`, [samples], unweighted, on the device. Only of a mixture whose
        task defines `Task.sample_losses`, else None."""
        ...

    def evaluate(self, batch: Batch) -> dict[str, float]:
        """The task's metrics on `batch` (collective if `equal_micro_batches`)."""
        ...

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are their moving average, if the job keeps one and a step was done (collective, both at
        entering and at leaving). If an error leaves it, a sharded engine's state is undefined."""
        ...

    def holdings(self) -> tuple[Extent, ...]:
        """What part of the logical state this member answers for. Disjoint over the view, and together everything."""
        ...

    def read_state(self) -> Shard:
        """A host copy of this member's holdings, taken at a step boundary. Not collective."""
        ...

    def offered(self, part: int, parts: int) -> Shard:
        """A host copy of part `part` of `parts` even parts of the live state, at a step boundary. Not collective. Only
        where `keeps_state`: what a member that is up to date gives to others. Sharded members give their snapshots."""
        ...

    def wanted(self) -> dict[str, tuple[Extent, ...]]:
        """Key -> the elements that this member must be given in this view to go on: everything for a replicated engine,
        for a sharded one its new holdings and what it holds whole. After `form`; not collective."""
        ...

    def write_state(
        self, read: ReadState, scalars: dict[str, Any], buffers: dict[str, torch.Tensor], *, shared: bool = True
    ) -> None:
        """Take over a state. Raises CheckpointError if the state is not that of this model.

        `shared`: all members call (collective) and share the reading, because it comes from storage: what each needs
        whole is read in even parts and gathered over the network. Otherwise `read` gives this member all that it
        `wanted`, at no cost, and a replicated engine does nothing collective.
        """
        ...

    def full_parameters(self) -> dict[str, torch.Tensor]:
        """All parameters whole, fp32, on the host of rank 0; empty on the others (collective)."""
        ...
