"""The loops that Shoal is measured against: what one would write by hand with torch DDP or DeepSpeed.

They read the same packed Parquet with plain pyarrow and do the same work: clip, AdamW, cosine rate, loss of each step.
One process per worker: `python benchmarks/plain.py ENGINE RANK SIZE PORT SPEC.json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from shoal.tasks import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Counted(LanguageModel):
    """A language model that says how far it has come: `count` is a file with one byte for each sample that went through
    it, in all processes together."""

    count: str

    def loss(self, model: Any, batch: Any) -> torch.Tensor:
        with open(self.count, "ab", buffering=0) as file:
            file.write(bytes(len(batch["tokens"])))
        return super().loss(model, batch)


def batches(folder: str, batch: int, rank: int, size: int) -> Iterator[torch.Tensor]:
    """This rank's part of each global batch, for ever. [batch / size, tokens]"""
    while True:
        for path in sorted(Path(folder).glob("*.parquet")):
            for table in pq.ParquetFile(path).iter_batches(batch_size=batch, columns=["tokens"]):
                if table.num_rows < batch:
                    continue
                column = table.column("tokens")
                tokens = np.asarray(column.flatten()).reshape(batch, -1)
                part = tokens[rank * batch // size : (rank + 1) * batch // size]
                yield torch.from_numpy(part.copy())


def optimizer_for(model: torch.nn.Module, spec: SimpleNamespace) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=(0.9, 0.95), fused=True)


def ddp(spec: SimpleNamespace, task: Counted, rank: int, size: int) -> Iterator[float]:
    model = task.build()
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if size > 1 else model
    optimizer = optimizer_for(model, spec)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, spec.steps)
    for tokens in batches(spec.data, spec.batch, rank, size):
        loss = task.loss(wrapped, {"tokens": tokens})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        yield loss.item()


def zero_config(stage: int, batch: int, size: int) -> dict[str, Any]:
    """What DeepSpeed is told: one pass over a rank's part of the batch, clipping as everywhere here."""
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // size,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
    }


def zero(stage: int, spec: SimpleNamespace, task: Counted, rank: int, size: int) -> Iterator[float]:
    import deepspeed

    model = task.build()
    config = zero_config(stage, spec.batch, size)
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer_for(model, spec), config=config)
    for step, tokens in enumerate(batches(spec.data, spec.batch, rank, size)):
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * 0.5 * (1 + np.cos(np.pi * step / spec.steps))
        loss = task.loss(engine, {"tokens": tokens})
        engine.backward(loss)
        engine.step()
        yield loss.item()


def train(engine: str, rank: int, size: int, port: str, spec: SimpleNamespace) -> None:
    """One worker of the run, in this process."""
    torch.set_num_threads(spec.threads)
    torch.manual_seed(0)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ["LOCAL_SIZE"] = "1"
    task = Counted(**spec.task, count=spec.count)
    if engine == "ddp":
        dist.init_process_group("gloo", rank=rank, world_size=size)
        losses = ddp(spec, task, rank, size)
    else:
        import deepspeed

        deepspeed.init_distributed("gloo", verbose=False)
        losses = zero(int(engine[-1]), spec, task, rank, size)
    for _ in range(spec.steps):
        next(losses)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    engine, rank, size, port, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    train(engine, rank, size, port, SimpleNamespace(**json.loads(Path(path).read_text())))


if __name__ == "__main__":
    main()
