"""One replica group of torchft: `python torchft_worker.py SPEC.json SLOT`, with TORCHFT_LIGHTHOUSE in the environment.

Runs in torchft's own virtual environment, so it imports nothing of Shoal but the model, which stands on torch alone.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torchft import Manager, Optimizer, ProcessGroupGloo

from benchmarks.churn.eventlog import EventLog
from benchmarks.churn.loop import Loop, build, finish, part_of
from benchmarks.churn.workload import Workload


def main() -> None:
    spec, slot = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    loop = Loop(Workload(**spec["workload"]), Path(spec["folder"]), Path(spec["tokens"]), "")
    model, plain = build(loop.workload)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def load(state: dict[str, Any]) -> None:
        model.load_state_dict(state["model"])
        plain.load_state_dict(state["optimizer"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=2)),
        min_replica_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        rank=0,
        world_size=1,
        load_state_dict=load,
        state_dict=lambda: {"model": model.state_dict(), "optimizer": plain.state_dict()},
        replica_id=slot,
        hostname="127.0.0.1",
        timeout=timedelta(seconds=10),
        quorum_timeout=timedelta(seconds=60),
        use_async_quorum=False,  # who takes part must be known before the batch is divided
        init_sync=True,
    )
    optimizer, log = Optimizer(manager, plain), EventLog(loop.folder)
    log("begun", pid=os.getpid(), rank=0)
    workload = loop.workload
    while manager.current_step() < workload.steps:
        step = manager.current_step()
        optimizer.zero_grad()  # waits for the quorum, and heals this replica if it is behind
        step = manager.current_step()
        if step >= workload.steps:
            break
        size, rank = manager.num_participants(), manager.participating_rank()
        for group in plain.param_groups:
            group["lr"] = workload.rate(step)
        if rank is not None:
            loss = workload.task.loss(model, part_of(loop, step, rank, size))
            loss.backward()
        _average(manager, model, size)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # only if all say that the step is good
        if manager.current_step() > step and rank == 0:
            log("step", step=step + 1, view=f"{slot}:{size}", workers=size)
    if manager.participating_rank() in (0, None):
        finish(loop, model, log)
    manager.shutdown()


def _average(manager: Manager, model: torch.nn.Module, size: int) -> None:
    """Gradients as one flat vector. torchft's DistributedDataParallel ends survivors on gloo when a peer dies inside
    the all-reduce, so this is what its documentation shows for loops without it."""
    parameters = list(model.parameters())
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters])
    manager.allreduce(flat).wait()
    at = 0
    for p in parameters:
        p.grad = flat[at : at + p.numel()].view_as(p).clone()
        at += p.numel()


if __name__ == "__main__":
    main()
