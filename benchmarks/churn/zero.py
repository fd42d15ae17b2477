"""The same loop with DeepSpeed ZeRO: what Shoal's sharded engines are measured against when nothing happens."""

from __future__ import annotations

import os

import torch.distributed as dist

from benchmarks.churn.eventlog import EventLog
from benchmarks.churn.loop import Loop, batches, build, finish
from benchmarks.plain import zero_config


def train_zero(loop: Loop, stage: int) -> None:
    """Train by DeepSpeed's own engine, in the process group of the environment."""
    os.environ["LOCAL_RANK"], os.environ["LOCAL_SIZE"] = "0", "1"
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    workload, rank, size = loop.workload, dist.get_rank(), dist.get_world_size()
    model, optimizer = build(workload)
    config = zero_config(stage, workload.batch, size)
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    log = EventLog(loop.folder)
    for step, batch in batches(loop, rank, size, 0):
        for group in optimizer.param_groups:
            group["lr"] = workload.rate(step)
        loss = workload.task.loss(engine, batch)
        engine.backward(loss)
        engine.step()
        if rank == 0:
            log("step", step=step + 1, view="deepspeed", workers=size)
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        if rank == 0:
            finish(loop, model, log)
    dist.barrier()
    dist.destroy_process_group()
