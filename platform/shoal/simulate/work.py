"""What is trained, as far as time and bytes depend on it."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from shoal.errors import ConfigError
from shoal.membership.leasing import steps_apart
from shoal.simulate.costs import STATE_BYTES, WEIGHT_BYTES, Costs

FLOPS_PER_PARAMETER_AND_TOKEN = 6
"""Two forward, four backward: Kaplan et al., Scaling laws for neural language models, arXiv 2001.08361, section 2.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A job on workers with these costs."""

    model_size: float
    """Parameters."""
    tokens: float
    """Of a global batch."""
    virtual_shards: int
    stage: int
    """0: replicated; 1, 2, 3: ZeRO."""
    costs: Costs

    def __post_init__(self) -> None:
        for name in ("model_size", "tokens", "virtual_shards"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name):g} must be more than 0 and finite")
        if self.stage not in (0, 1, 2, 3):
            raise ConfigError(f"stage={self.stage} is none of 0 (replicated), 1, 2 and 3 (ZeRO)")

    @property
    def sharded(self) -> bool:
        """Whether each member holds a part of the state only."""
        return self.stage > 0

    @property
    def shard_s(self) -> float:
        """Seconds of one virtual shard."""
        if self.costs.shard_s is not None:
            return self.costs.shard_s
        flops = FLOPS_PER_PARAMETER_AND_TOKEN * self.model_size * self.tokens / self.virtual_shards
        return flops / (self.costs.utilisation * self.costs.device_flops)

    def step_s(self, members: int) -> float:
        """Seconds of a step: the members with most virtual shards decide, or the processors that they share."""
        rounds = ceil(self.virtual_shards / members)
        return max(rounds, self.virtual_shards / (self.costs.at_once or members)) * self.shard_s

    @property
    def even_s(self) -> float:
        """Worker-seconds in a step that are work."""
        return self.virtual_shards * self.shard_s

    def part(self, members: int) -> float:
        """Bytes of the state that one of so many members keeps, or copies for a checkpoint."""
        return STATE_BYTES * self.model_size / members

    # Saving ----------------------------------------------------------------------------------------------------------

    def copy_s(self, members: int) -> float:
        """What training waits for a snapshot or a checkpoint: the copy to the host's memory."""
        return self.part(members) / self.costs.host_copy

    def send_s(self, members: int) -> float:
        """Beside the training: bringing a snapshot to the buddy."""
        return self.part(members) / self.costs.bandwidth

    def write_s(self, members: int) -> float:
        """Beside the training: writing a checkpoint."""
        return self.part(members) / self.costs.storage

    def snapshot_s(self, members: int) -> float:
        """What a snapshot takes from the training."""
        return self.copy_s(members) + self.costs.beside * self.send_s(members)

    def snapshot_every(self, members: int) -> int:
        """Steps between snapshots, as the coordinator chooses."""
        return steps_apart(self.copy_s(members) + self.send_s(members), self.step_s(members))

    # Moving ----------------------------------------------------------------------------------------------------------

    def load_s(self, members: int) -> float:
        """Reading a checkpoint: each its part; where all keep all weights, the rest of these from each other."""
        gathered = WEIGHT_BYTES * self.model_size if self.stage in (1, 2) else 0.0
        if not self.sharded:
            gathered = STATE_BYTES * self.model_size
        return self.part(members) / self.costs.storage + gathered / self.costs.bandwidth

    def move_s(self, members: int, newcomers: int) -> float:
        """State from memory to memory when a view of so many members forms, of whom some are new."""
        if self.costs.state_s is not None:
            return self.costs.state_s
        if not self.sharded:
            return STATE_BYTES * self.model_size / self.costs.bandwidth if newcomers else 0.0
        moved = self.part(members) / (self.costs.bandwidth * self.costs.exchange)
        return moved + (WEIGHT_BYTES * self.model_size / self.costs.bandwidth if self.stage < 3 else 0.0)

    def regroup_s(self, members: int) -> float:
        """Forming a view."""
        return self.costs.regroup_s + self.costs.regroup_per_worker_s * members
