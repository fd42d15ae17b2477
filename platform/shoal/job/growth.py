"""How the batch grows during training, as values; docs/batch_size.md says when which helps.

Larger batches late do what lower rates do (Smith et al. 2018, "Don't decay the learning rate, increase the batch
size", arXiv:1711.00489), and take fewer steps for the same samples. The virtual shards grow with the batch; their
number stays.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.errors import ConfigError
from shoal.job.checks import finite, fraction, positive, whole
from shoal.job.schedules import ROUNDING

if TYPE_CHECKING:
    from shoal.job.spec import Batch, Job


@dataclass(frozen=True, slots=True)
class Milestones:
    """The batch grows at some points of the budget (Smith et al. 2018)."""

    at: tuple[tuple[float, int], ...]
    """(progress after which it grows, its size from there on), both in rising order: ((0.5, 128), (0.75, 256))."""

    def __post_init__(self) -> None:
        if not self.at or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in self.at):
            raise ConfigError(
                f"Milestones.at={self.at!r} must be pairs of a share of the budget and a batch size, for example "
                f"((0.5, 128), (0.75, 256))"
            )
        for progress, size in self.at:
            fraction("a progress in Milestones.at", progress)
            positive("a progress in Milestones.at", progress)
            whole("a size in Milestones.at", size, 1)
        for what, values in zip(("progress", "sizes"), zip(*self.at, strict=True), strict=True):
            if list(values) != sorted(set(values)):
                raise ConfigError(f"Milestones.at={self.at!r} must rise: its {what} are {list(values)}")

    def sizes(self, size: int) -> tuple[int, ...]:
        """All sizes of a batch that begins with `size`."""
        return (size, *(n for _, n in self.at))

    def size_at(self, size: int, progress: float) -> int:
        """The size of the step that ends at `progress`, if the batch begins with `size`: as a schedule's jump, a
        milestone changes the first step that ends behind it."""
        return self.sizes(size)[bisect_left([p for p, _ in self.at], progress - ROUNDING)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ByNoise:
    """The batch grows when the measured gradient noise scale says that a larger one is worth its samples (McCandlish
    et al. 2018, "An empirical model of large-batch training", arXiv:1812.06162). It never shrinks."""

    most: int
    """The largest batch."""
    every: int = 100
    """Steps between two decisions. The size of such a block of steps is decided from what was measured in the last but
    one before it, so that nobody waits for the decision."""
    factor: int = 2
    """By how much it grows at once."""
    threshold: float = 1.0
    """It grows if the larger batch is at most this many times the noise scale."""

    def __post_init__(self) -> None:
        whole("ByNoise.most", self.most, 1)
        whole("ByNoise.every", self.every, 1)
        whole("ByNoise.factor", self.factor, 2)
        finite("ByNoise.threshold", self.threshold)
        positive("ByNoise.threshold", self.threshold)

    def sizes(self, size: int) -> tuple[int, ...]:
        """All sizes that a batch that begins with `size` may come to have."""
        found = [size]
        while found[-1] * self.factor <= self.most:
            found.append(found[-1] * self.factor)
        return tuple(found)


Growth = Milestones | ByNoise


def check_growth(batch: Batch) -> None:
    """Raise ConfigError unless every size is a larger one that the virtual shards divide, and fits into a pass."""
    sizes = batch.sizes
    if batch.growth is None:
        return
    if len(sizes) < 2:
        raise ConfigError(
            f"batch.growth=ByNoise(most={sizes[0] if not isinstance(batch.growth, ByNoise) else batch.growth.most}) "
            f"leaves batch.size={batch.size} no room to grow; raise ByNoise.most, or leave batch.growth out"
        )
    if sizes[1] <= batch.size:
        raise ConfigError(
            f"batch.growth begins with {sizes[1]}, which is not more than batch.size={batch.size}; it only grows"
        )
    odd = [n for n in sizes if n % batch.virtual_shards]
    if odd:
        multiple = -(-odd[0] // batch.virtual_shards) * batch.virtual_shards
        raise ConfigError(
            f"batch.growth has a size of {odd[0]}, which cannot be split into batch.virtual_shards="
            f"{batch.virtual_shards} equal parts; use {multiple}"
        )
    largest = sizes[-1] // batch.virtual_shards
    if batch.micro_limit is not None and batch.micro_limit < largest:
        raise ConfigError(
            f"batch.micro_limit={batch.micro_limit} is smaller than one virtual shard of the largest batch ({largest} "
            f"of {sizes[-1]} samples); raise batch.virtual_shards, or grow to "
            f"{batch.micro_limit * batch.virtual_shards}"
        )


def grows_on_the_way(job: Job) -> bool:
    """Whether nobody can know before the run how large the batch of each step will be."""
    growth = job.batch.growth
    return isinstance(growth, ByNoise) or (isinstance(growth, Milestones) and job.budget.spent is not None)


def check_growth_goes_with(job: Job) -> None:
    """Raise ConfigError if something else in the job needs to know what the growth cannot tell."""
    growth, data = job.batch.growth, job.data
    if isinstance(growth, Milestones) and data.selection is not None and job.budget.steps is None:
        raise ConfigError(
            "batch.growth=Milestones and data.selection go together only with budget.steps: where in the samples a "
            "milestone lies depends on how many steps select, and that on how many steps there are"
        )
    if not isinstance(growth, ByNoise):
        return
    if data.selection is not None:
        raise ConfigError(
            "batch.growth=ByNoise does not go with data.selection: the gradients of samples that were chosen by their "
            "losses do not tell the noise of the data's; leave one of them out, or grow at Milestones"
        )
    asked = _paced(job)
    if asked:
        raise ConfigError(
            f"batch.growth=ByNoise does not go with {' and '.join(asked)}: that fixes the order of the samples by "
            f"progress, before anybody knows how many samples the steps will read; grow at Milestones"
        )


def _paced(job: Job) -> Sequence[str]:
    weights = any(isinstance(s.weight, tuple) for s in job.data.sources)
    return [
        *(["data.curriculum"] if job.data.curriculum is not None else []),
        *(["weights of data.sources along progress"] if weights else []),
    ]
