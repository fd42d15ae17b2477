"""One step of `exact` numerics: each virtual shard's gradient by itself, added in a fixed tree, then one norm for all.

What an engine adds to this is how it runs a model and how it applies a gradient; both act on single elements or single
shards, so they do not care who else there is. docs/numerics.md says what the promise rests on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import get_total_norm

from shoal.engines.buffers import StepBuffers
from shoal.engines.flat import BLOCK, FlatLayout
from shoal.engines.reduction import Range, TreeReduction, block_sums, halve
from shoal.engines.tree import Node, halves, total
from shoal.tasks.base import Batch

Losses = tuple[tuple[int, float], ...]


@dataclass(slots=True)
class Reduced:
    """What all virtual shards of a step gave together."""

    gradient: torch.Tensor
    """The whole vector; only the elements that this member wants are defined."""
    norm: float
    losses: Losses
    """(1, loss) per virtual shard."""
    notes: tuple[int, ...]
    """64 bits per virtual shard: what the members gave to `reduce`."""
    buffers: torch.Tensor
    """[virtual shards, elements], float64, on the host: what each of them made of the model's buffers."""
    squares: tuple[float, ...]
    """Per virtual shard the squared norm of its own gradient, that of its mean loss."""

    def clip(self, limit: float | None) -> float:
        """What the gradient is to be multiplied by so that its norm is at most `limit`."""
        # As torch.nn.utils.clip_grad_norm_ has it, but in double precision, which no kernel has a say in.
        return 1.0 if limit is None else min(1.0, limit / (self.norm + 1e-6))


class ExactStep:
    """The gradients of one member's virtual shards, from their backward passes to the sum over all members."""

    def __init__(self, layout: FlatLayout, parameters: dict[str, nn.Parameter], device: torch.device) -> None:
        self.layout = layout
        self._parameters = {name: parameters[name] for name in layout.slots}
        self._device = device
        self._spare: list[torch.Tensor] = []
        self._stack: list[tuple[Node, torch.Tensor]] = []
        self._shard_losses: list[torch.Tensor] = []
        self._shard_norms: list[torch.Tensor] = []
        self._reduction: TreeReduction | None = None

    def enter(self, rank: int, bounds: Sequence[int], wants: Sequence[Range] | None = None) -> None:
        """Take a place in a view (collective if `wants`, the parts of the sum that this member needs, is given)."""
        self._rank, self._bounds = rank, tuple(bounds)
        self._joins = halves((0, bounds[-1]))
        size = len(bounds) - 1
        everything = [[(0, self.layout.total)]] * size
        if size > 1:
            needs = everything if wants is None else _ask_all(list(wants), size)
            self._reduction = TreeReduction(rank, bounds, self.layout.total, needs, self._device)

    def leave(self) -> None:
        """Give the memory back."""
        self.abandon()
        self._reduction = None
        self._spare = []

    def abandon(self) -> None:
        """Forget a step that will not be finished."""
        self._spare += [vector for _, vector in self._stack]
        self._stack, self._shard_losses, self._shard_norms = [], [], []

    def add_shard(self, loss: torch.Tensor, share: float) -> None:
        """Take over the gradient of the next virtual shard from the parameters. `loss`: detached, a scalar.

        Raises ValueError if that was not one shard.
        """
        if abs(share * self._bounds[-1] - 1) > 1e-6:
            raise ValueError(
                f"exact numerics take virtual shards one by one, each with a share of 1/{self._bounds[-1]}; got {share}"
            )
        shard = self._bounds[self._rank] + len(self._shard_losses)
        self._shard_losses.append(loss)
        self._shard_norms.append(get_total_norm([p.grad for p in self._parameters.values() if p.grad is not None]))
        node = (shard, shard + 1)
        if self._is_right_half(node):
            self._for_each(self._stack[-1][1], _add)
            self._stack[-1] = (self._joins[self._stack[-1][0], node], self._stack[-1][1])
        else:
            vector = self._blank()
            self._for_each(vector, _write)
            self._stack.append((node, vector))
        while len(self._stack) > 1 and self._is_right_half(self._stack[-1][0], below=2):
            (left, whole), (right, part) = self._stack[-2:]
            whole.add_(part)
            self._spare.append(part)
            self._stack[-2:] = [(self._joins[left, right], whole)]

    def reduce(self, buffers: torch.Tensor, notes: Sequence[int] = ()) -> Reduced:
        """The sum over all members, and what they tell each other with it (collective).

        `buffers`: [this member's shards, elements], see `Reduced.buffers`. `notes`: a 64-bit number for each of its
        shards; none: zeros. When this returns, nothing more is needed from the others. The gradient stays this
        object's: `release` it.
        """
        own = self._bounds[self._rank + 1] - self._bounds[self._rank]
        if len(self._shard_losses) != own:
            raise ValueError(f"{len(self._shard_losses)} of this member's {own} virtual shards were computed")
        sums = dict(self._stack)
        if self._reduction is None:
            (gradient,) = sums.values()
            squares = block_sums(gradient)
        else:
            gradient = self._blank()
            squares = self._reduction.run(sums, gradient)
            self._spare += sums.values()
        losses, norms = (torch.stack([x.double() for x in xs]).cpu() for xs in (self._shard_losses, self._shard_norms))
        self._stack, self._shard_losses, self._shard_norms = [], [], []
        # Their bits travel as those of floats: nothing is computed with them on the way.
        said = torch.tensor([_signed(n) for n in notes] or [0] * own, dtype=torch.int64).view(torch.float64)
        squares, rows = self._share(squares, torch.cat([*(x[:, None] for x in (losses, said, norms)), buffers], dim=1))
        heard = rows[:, 1].contiguous().view(torch.int64).tolist()
        return Reduced(
            gradient,
            _root(squares),
            losses=tuple((1, loss) for loss in rows[:, 0].tolist()),
            notes=tuple(n % (1 << 64) for n in heard),
            buffers=rows[:, 3:],
            squares=tuple((norm * self._bounds[-1]) ** 2 for norm in rows[:, 2].tolist()),
        )

    def release(self, gradient: torch.Tensor) -> None:
        """The vector of a `Reduced` is not needed any more."""
        self._spare.append(gradient)

    def _is_right_half(self, node: Node, *, below: int = 1) -> bool:
        return len(self._stack) >= below and (self._stack[-below][0], node) in self._joins

    def _blank(self) -> torch.Tensor:
        """A vector with zeros between the parameters; what it holds of them is for the caller to overwrite."""
        return self._spare.pop() if self._spare else self.layout.zeros(self._device)

    @torch.no_grad()
    def _for_each(self, vector: torch.Tensor, put: Callable[[torch.Tensor, torch.Tensor | None], object]) -> None:
        for name, part in self.layout.views(vector).items():
            parameter = self._parameters[name]
            put(part, parameter.grad)
            parameter.grad = None

    def _share(self, squares: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Everybody's `squares` (1-D) and `rows` (2-D), one after another, float64, on the host (collective).

        Always on the host: on a GPU a collective that was aborted leaves garbage without an error. Here it raises.
        """
        squares = squares.cpu().double()  # also waits for everything that was received
        if self._reduction is None:
            return squares, rows
        lengths = [
            (self._reduction.chunk_length(r) // BLOCK, (high - low) * rows.shape[1])
            for r, (low, high) in enumerate(pairwise(self._bounds))
        ]
        longest = max(sum(pair) for pair in lengths)
        mine = torch.zeros(longest, dtype=torch.float64)
        mine[: squares.numel() + rows.numel()] = torch.cat([squares, rows.flatten()])
        everyone = [torch.empty_like(mine) for _ in lengths]
        dist.all_gather(everyone, mine)
        parts = [said[: a + b].split([a, b]) for said, (a, b) in zip(everyone, lengths, strict=True)]
        return torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts]).view(-1, rows.shape[1])


class ShardBuffers(StepBuffers):
    """Changing buffers whose values after each virtual shard are kept apart, so that their mean has a fixed order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._shards: list[dict[str, torch.Tensor]] = []

    def end_shard(self, share: float) -> None:
        """After a forward pass: remember what it made of them. Padding (share 0) does not count."""
        if share:
            self._shards.append({name: self._model.get_buffer(name).clone() for name in self.names})

    def rows(self) -> torch.Tensor:
        """[this member's shards, elements of all buffers], float64, on the host."""
        flat = [[shard[name].reshape(-1).double().cpu() for name in self.names] for shard in self._shards]
        return torch.stack([torch.cat([torch.zeros(0, dtype=torch.float64), *parts]) for parts in flat])

    def take(self, rows: torch.Tensor) -> None:
        """The step's new values from what all virtual shards made of the old ones. [virtual shards, elements]

        Floating-point buffers: the mean. Others: what the last shard says.
        """
        count = len(rows)
        mean = total({(i, i + 1): row for i, row in enumerate(rows)}, (0, count), torch.add) / count
        sizes = [self._before[name].numel() for name in self.names]
        for name, averaged, last in zip(self.names, mean.split(sizes), rows[-1].split(sizes), strict=True):
            old = self._before[name]
            self._sums[name] = (averaged if old.is_floating_point() else last).view(old.shape).to(old)

    def finish(self, *, applied: bool) -> None:
        """Give the model the step's new values, or the old ones if the step was not applied."""
        super().finish(applied=applied)
        self._shards = []

    def abandon_step(self) -> None:
        """Forget a step that will not be finished here."""
        super().abandon_step()
        self._shards = []


def realigned(batch: Batch) -> Batch:
    """Copies in memory of their own. A slice of a member's samples begins wherever that member's range does, and some
    kernels treat what is not aligned differently."""
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _add(part: torch.Tensor, gradient: torch.Tensor | None) -> None:
    # Adding nothing is adding zero, also to the sign of a zero.
    part.add_(0.0 if gradient is None else gradient)


def _write(part: torch.Tensor, gradient: torch.Tensor | None) -> None:
    if gradient is None:
        part.zero_()
    else:
        part.copy_(gradient)


def _signed(note: int) -> int:
    return note - (1 << 64) if note >> 63 else note


def _root(squares: torch.Tensor) -> float:
    """The norm from the blocks' sums of squares: by halving, in double precision."""
    padded = torch.zeros(1 << max(0, squares.numel() - 1).bit_length(), dtype=torch.float64)
    padded[: squares.numel()] = squares
    return math.sqrt(float(halve(padded)))


def _ask_all(wants: list[Range], size: int) -> list[list[Range]]:
    everyone: list[list[Range]] = [[]] * size
    dist.all_gather_object(everyone, wants)
    return everyone
