"""The training loop of all arms that are not Shoal's: torch DDP, or DeepSpeed, as one would write it by hand.

The same model, batch, order and rate whatever the number of ranks; a file of the whole state every k steps where an arm
asks for it; goes on from that file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.churn.eventlog import EventLog
from benchmarks.churn.workload import Workload, part_of_batch

CHECKPOINT, FINAL = "checkpoint.pt", "final.npy"
Save = Callable[[int, Callable[[], dict[str, Any]], bool], None]
"""Called by all ranks after each step: the steps done, what makes the whole state, and whether it must be saved."""


@dataclass(frozen=True)
class Loop:
    """What a loop is told."""

    workload: Workload
    folder: Path
    tokens: Path
    view: str
    """Of the log: a name of this formation of the group."""


def build(workload: Workload) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The model with its first weights, and its optimizer, as `benchmarks.plain` has it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = workload.task.build()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return model, torch.optim.AdamW(groups, lr=workload.lr, betas=(0.9, 0.95), fused=True)


def batches(loop: Loop, rank: int, size: int, first: int) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """(step from 0 on, this rank's part of its batch)."""
    for step in range(first, loop.workload.steps):
        yield step, part_of(loop, step, rank, size)


def part_of(loop: Loop, step: int, rank: int, size: int) -> dict[str, torch.Tensor]:
    """What `rank` of `size` trains on in a step from 0 on."""
    tokens = np.load(loop.tokens, mmap_mode="r")
    return {"tokens": torch.from_numpy(np.array(part_of_batch(tokens, step, loop.workload.batch, rank, size)))}


def train(
    loop: Loop,
    state: dict[str, Any] | None,
    save: Save | None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Train in the default process group to the end of the budget, or until all hear of a stop.

    `state`: of a checkpoint, None: begin. `stop`: whether this rank was asked to end; all of them save and return after
    the step in which one was.
    """
    workload, rank, size = loop.workload, dist.get_rank(), dist.get_world_size()
    model, optimizer = build(workload)
    first = 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    wrapped = DistributedDataParallel(model) if size > 1 else model
    log = EventLog(loop.folder)
    log("begun", pid=os.getpid(), rank=rank)

    def whole(step: int) -> dict[str, Any]:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}

    for step, batch in batches(loop, rank, size, first):
        for group in optimizer.param_groups:
            group["lr"] = workload.rate(step)
        loss = workload.task.loss(wrapped, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if rank == 0:
            log("step", step=step + 1, view=loop.view, workers=size)
        stopping = stop is not None and _anyone(stop())
        if save is not None:
            save(step + 1, lambda done=step + 1: whole(done), stopping)  # type: ignore[misc]
        if stopping:
            return
    if rank == 0:
        finish(loop, model, log)


def finish(loop: Loop, model: torch.nn.Module, log: EventLog) -> None:
    """Keep the final parameters, and say that it is over."""
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()
    np.save(loop.folder / FINAL, flat)
    log("end", steps=loop.workload.steps, digest=hashlib.sha256(flat.tobytes()).hexdigest())


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """The whole state in one file, which is there whole or not at all."""
    temporary = folder / f"{CHECKPOINT}.{os.getpid()}"
    torch.save(state, temporary)
    os.replace(temporary, folder / CHECKPOINT)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last one, or None."""
    with suppress(FileNotFoundError):
        return torch.load(folder / CHECKPOINT)
    return None


def _anyone(asked: bool) -> bool:
    flag = torch.tensor([float(asked)])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())
