"""What every arm trains: one small language model on the built-in corpus, a fixed batch, a fixed number of steps."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shoal
from shoal.tasks import LanguageModel

if TYPE_CHECKING:
    import numpy as np
    import torch

TOKENS = "tokens.npy"
CHECKPOINT_EVERY = 50
"""Steps; of Shoal, which needs one only if all workers are lost at once."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(LanguageModel):
    """A language model whose every sample also takes the time of a device that computes while its host waits.

    With it a step is faster with more workers, on a machine with fewer cores than workers as well, and what a newcomer
    computes to start is not taken from those who train: as on machines that have a device each.
    """

    device_s: float = 0.0
    """Seconds for each sample that is trained on."""

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        import torch

        if self.device_s and torch.is_grad_enabled():
            time.sleep(self.device_s * len(batch["tokens"]))
        return super().loss(model, batch)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Sizes: divisible by 1, 2, 3 and 4 workers alike, so that nobody has more to do than the others."""

    steps: int = 420
    batch: int = 24
    virtual_shards: int = 12
    context: int = 64
    layers: int = 2
    heads: int = 4
    width: int = 64
    device_ms: float = 16.0
    """Of a device, for each sample (`OnDevice`); 0: the cores do everything."""
    lr: float = 3e-3

    @property
    def task(self) -> OnDevice:
        return OnDevice(
            context=self.context, layers=self.layers, heads=self.heads, width=self.width, device_s=self.device_ms / 1e3
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step from 0 on, of the loops that are not Shoal's."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.steps))

    def job(self, engine: str, numerics: str, workers: int) -> shoal.Job:
        """The same as a job."""
        sharded = engine != "replicated"
        kind = shoal.Engine(name="zero", stage=int(engine[-1])) if sharded else shoal.Engine()  # type: ignore[arg-type]
        return shoal.Job(
            name="churn",
            task=self.task,
            data=shoal.Data(train="builtin:stdlib", block=self.context + 1),
            batch=shoal.Batch(size=self.batch, virtual_shards=self.virtual_shards),
            optimizer=shoal.Optimizer(name="adamw", lr=self.lr, clip_norm=1.0),
            schedule=shoal.Cosine(warmup=0.0, final=0.0),
            budget=shoal.Budget(steps=self.steps),
            workers=shoal.Workers(min=1, max=workers),
            engine=kind,
            numerics=numerics,  # type: ignore[arg-type]
            evaluation=shoal.Evaluation(every=None, samples=8),
            checkpoints=shoal.Checkpoints(every=CHECKPOINT_EVERY, export=False),
            failures=shoal.Failures(max_failures=-1),
        )

    def written(self, folder: Path) -> Path:
        """The corpus' blocks as one array [samples, context + 1] in `folder`, for the loops that are not Shoal's."""
        import numpy as np
        import pyarrow.parquet as pq

        from shoal.data.sources import resolve

        path = folder / f"{self.context}-{TOKENS}"
        if not path.exists():
            data = resolve(self.job("replicated", "fast", 1).data, folder, ("tokens",)).train
            parts = []
            for file in sorted(Path(data.uri).glob("*.parquet")):
                column = pq.read_table(file, columns=["tokens"]).column("tokens").combine_chunks()
                parts.append(np.asarray(column.flatten()).reshape(-1, self.context + 1))
            np.save(path, np.concatenate(parts))
        return path

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def part_of_batch(tokens: np.ndarray, step: int, batch: int, rank: int, size: int) -> np.ndarray:
    """What rank `rank` of `size` trains on in a step from 0 on: [batch / size, context + 1]. Together they have the
    same samples, however many they are."""
    first = (step * batch) % (len(tokens) - batch)
    return tokens[first + rank * batch // size : first + (rank + 1) * batch // size]
