"""From a job to an engine: build the model, prepare it, choose the engine."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from shoal.engines.activations import checkpoint_activations
from shoal.engines.buffers import persistent_buffers
from shoal.engines.determinism import check_process
from shoal.engines.protocol import Engine
from shoal.engines.randomness import seed_build
from shoal.engines.task_module import blame
from shoal.errors import ConfigError, TaskError
from shoal.job import Job
from shoal.tasks.base import Task


def make_engine(job: Job, device: torch.device) -> Engine:
    """A new engine for `job`, its model built and on `device`; no process group is needed.

    Every member builds the same weights, from the job's seed. Raises TaskError with the user's traceback if the task
    fails, ConfigError if the engine cannot be what the job asks for.
    """
    if not isinstance(job.task, Task):
        raise ConfigError(
            f"task={job.task!r} is not a shoal.Task; derive its class from shoal.Task, which has defaults for all but "
            f"build() and loss()"
        )
    model = build_model(job).to(device)
    model.train()
    if job.engine.checkpoint_activations:
        checkpoint_activations(model)
    return _kind(job)(job, model, device)


def _kind(job: Job) -> Any:
    """The class of the engine. Imports no more than it needs: DeepSpeed may not be there."""
    if job.numerics == "exact":
        check_process()
        if job.engine.name == "replicated":
            from shoal.engines.exact_replicated import ExactReplicatedEngine

            return ExactReplicatedEngine
        from shoal.engines.exact_zero import ExactZeroEngine

        return ExactZeroEngine
    if job.engine.name == "replicated":
        from shoal.engines.replicated import ReplicatedEngine

        return ReplicatedEngine
    from shoal.engines.zero import ZeroEngine

    return ZeroEngine


def import_sharded(device: torch.device) -> None:
    """Import DeepSpeed, which takes seconds. Raises ConfigError if it is not installed."""
    from shoal.deepspeed_compat import load

    load(device)


def build_model(job: Job) -> nn.Module:
    """The task's model with its initial weights, fp32, on the host. Raises TaskError."""
    seed_build(job.seed)
    with blame(job.task, "build()"):
        model = job.task.build()
    if not isinstance(model, nn.Module):
        raise TaskError(f"{type(job.task).__name__}.build() returned {type(model).__name__}; return a torch.nn.Module")
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise TaskError(
                f"parameter {name} has dtype {parameter.dtype}; only floating-point parameters can be trained. Make it "
                f"a buffer: self.register_buffer(...)"
            )
        # Parameters and state are fp32 in every engine; `engine.precision` says what is computed in.
        parameter.data = parameter.data.to(torch.float32)
    return model


def model_facts(model: nn.Module) -> dict[str, Any]:
    """What tells one model from another: `parameters`, the table of (name, elements, shape), and `digest`, 64 hex
    digits over the names, shapes and types of parameters and persistent buffers. Right also while they are sharded."""
    shapes = {name: (tuple(getattr(p, "ds_shape", p.shape)), str(p.dtype)) for name, p in model.named_parameters()}
    buffers = {name: (tuple(b.shape), str(b.dtype)) for name, b in persistent_buffers(model).items()}
    text = json.dumps([sorted(shapes.items()), sorted(buffers.items())])
    table = [(name, torch.Size(shape).numel(), shape) for name, (shape, _) in shapes.items()]
    return {"digest": hashlib.sha256(text.encode()).hexdigest(), "parameters": table}
