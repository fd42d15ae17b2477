"""The only file that touches private names of DeepSpeed. Everything here was read in, and is tested with, 0.19.8.

DeepSpeed expects one engine in the life of a process. Shoal forms a new one in every view, so what outlives an engine
(process-wide registries, attributes and hooks on the user's modules and parameters) has to be undone, and the place of
every parameter's elements in the flat partitions has to be known. A canary test calls each function of this file, so
that an upgrade that moves a name fails there and not in a run.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from shoal.errors import ConfigError


def load(device: torch.device) -> Any:
    """Import DeepSpeed for `device`, quietly. Raises ConfigError if it is not installed.

    DeepSpeed reads LOCAL_RANK (the device's index) and, on the CPU, LOCAL_SIZE at run time. They are set here for the
    life of the process, because Shoal starts its workers without a launcher that would do it.
    """
    os.environ["LOCAL_RANK"] = str(device.index or 0)
    os.environ.setdefault("LOCAL_SIZE", "1")
    os.environ["DS_ACCELERATOR"] = device.type
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            f"engine.name=zero needs DeepSpeed, which cannot be imported ({error}); run: pip install 'shoal[zero]'"
        ) from None
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # It calls collectives by names that recent torch wants replaced, and torch says so in every process.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # What DeepSpeed probes here with compiler runs, and then compiles, are collectives for inference. Not needed.
    deepspeed.ops.__dict__.setdefault("__compatible_ops__", {})
    return deepspeed


@contextmanager
def forming(*, hollow: bool) -> Iterator[None]:
    """Inside, a new engine is made without what costs time and gives nothing.

    It uses the default group itself instead of a group of the same members that it would make for itself. `hollow`: the
    state will be written before the engine is used, so that nothing is sent: neither rank 0's weights to everyone, nor,
    at stage 3, every parameter's parts to every member, each in a collective of its own, only to hang a hook on it.
    """
    import deepspeed.comm.comm as comm
    from deepspeed.utils import groups

    if comm.cdb is None:
        comm.init_distributed(dist_init_required=False)
    groups._WORLD_GROUP = torch.distributed.group.WORLD
    backend = comm.cdb
    if hollow:
        backend.broadcast = backend.all_gather_into_tensor = lambda *args, **kwargs: _Done()
    try:
        # At stage 3 it puts all its arguments, every parameter among them, into a line for a log that nobody reads.
        with torch._tensor_str.printoptions(threshold=0, edgeitems=0):
            yield
    finally:
        if hollow:
            del backend.broadcast, backend.all_gather_into_tensor


class _Done:
    """The handle of a collective that is over."""

    def wait(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements [start, start + count) of parameter `name` lie at `offset` of flat partition `flat` of this member."""

    name: str
    start: int
    count: int
    flat: int
    offset: int


def flat_partitions(engine: Any) -> list[torch.Tensor]:
    """The fp32 partitions that this member's optimizer updates, one per parameter group or sub-group."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        return optimizer.fp32_partitioned_groups_flat
    return optimizer.single_partition_of_fp32_groups


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside; its state is keyed by `flat_partitions`."""
    return engine.optimizer.optimizer


def pieces(engine: Any, names: dict[nn.Parameter, str]) -> list[Piece]:
    """What lies where in this member's flat partitions. Padding is left out."""
    optimizer, out = engine.optimizer, []
    if engine.zero_optimization_stage() < 3:
        for flat, group in enumerate(optimizer.bit16_groups):
            for parameter in group:
                mapping = parameter._hp_mapping
                if mapping is not None:
                    low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                    out.append(Piece(names[parameter], low.start, high.numel, flat, high.start))
        return out
    for flat, group in enumerate(optimizer.fp16_groups):
        offset = 0
        for parameter in group:
            start, count = _partition(parameter)
            if count:
                out.append(Piece(names[parameter], start, count, flat, offset))
            offset += parameter.partition_numel()
    return out


def frozen_partition(parameter: nn.Parameter) -> tuple[int, torch.Tensor]:
    """(start, live 1-D view) of this member's part of a parameter that ZeRO-3 partitions but does not train."""
    start, count = _partition(parameter)
    return start, parameter.ds_tensor.detach()[:count]  # type: ignore[attr-defined]


def _partition(parameter: Any) -> tuple[int, int]:
    size = parameter.partition_numel()
    start = parameter.ds_zero_partition_rank * size
    return start, max(0, min(size, parameter.ds_numel - start))


def take_off_reduction(engine: Any) -> None:
    """Gradients stay whole in the parameters from now on: DeepSpeed neither reduces nor partitions them."""
    optimizer = engine.optimizer
    for hook in (*optimizer._grad_acc_hooks, *getattr(optimizer, "_leaf_module_hooks", ())):
        hook.remove()


def end_backward(engine: Any) -> None:
    """After a backward pass that DeepSpeed does not know of: let go of what it gathered for it."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.backward_epilogue()


@torch.no_grad()
def pad_partitions(engine: Any, multiple: int) -> list[torch.Tensor]:
    """Move the flat partitions to memory whose length is a multiple of `multiple`, and make the torch optimizer update
    that, padding included. Returns the padded vectors; what DeepSpeed holds are views of their beginnings."""
    optimizer = engine.optimizer
    sharded = engine.zero_optimization_stage() == 3
    groups = optimizer.optimizer.param_groups
    for group in groups:
        group["params"] = []
    padded = []
    for i, flat in enumerate(flat_partitions(engine)):
        count = flat.numel()
        whole = torch.zeros(-(-count // multiple) * multiple, dtype=flat.dtype, device=flat.device)
        whole[:count].copy_(flat)
        flat.data = whole[:count]
        if sharded:
            optimizer._unflatten_partitioned_parameters(i)
        groups[optimizer.sub_group_to_group_id[i] if sharded else i]["params"].append(whole)
        padded.append(whole)
    return padded


def apply_gradients(engine: Any, partitions: list[torch.Tensor], gradients: list[torch.Tensor], lr: float) -> None:
    """Let the torch optimizer update what `pad_partitions` gave, and everybody know (collective)."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        optimizer._partition_all_parameters()
    for group in optimizer.optimizer.param_groups:
        group["lr"] = lr
    for partition, gradient in zip(partitions, gradients, strict=True):
        partition.grad = gradient
    optimizer.optimizer.step()
    for partition in partitions:
        partition.grad = None
    publish_partitions(engine)


@torch.no_grad()
def publish_partitions(engine: Any) -> None:
    """After the flat partitions were written: make what forward passes read say the same (collective)."""
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() < 3:
        optimizer.update_lp_params()
        for group in range(len(optimizer.bit16_groups)):
            optimizer._update_model_bit16_weights(group)
        return
    for i, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
        optimizer.fp16_partitioned_groups_flat[i].data.copy_(flat.data)
        optimizer._unflatten_partitioned_parameters(i)
    kept = optimizer.persistent_parameters
    if kept:
        kept[0].partition(kept)
        kept[0].all_gather(kept)


@torch.no_grad()
def clear_gradients(engine: Any) -> None:
    """ZeRO-3 keeps the gradient of the last step for a parameter that gets none in this one: make it zero."""
    if engine.zero_optimization_stage() == 3:
        engine.optimizer.grad_partitions_flat_buffer.zero_()


@contextmanager
def gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters are whole on every member (collective). Works for all stages; public API."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield


class Traces:
    """What a module and its parameters looked like before DeepSpeed, to undo what it attaches to them."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = [
            (m, set(m.__dict__), m._parameters, {k: set(v) for k, v in _hooks(m)}) for m in module.modules()
        ]
        self._parameters = [(p, dict(p.__dict__), p.shape, set(_grad_hooks(p))) for p in module.parameters()]

    def undo(self) -> None:
        """Take off everything that is new.

        Parameters that were partitioned get their shape back, but share the memory of one, filled with NaN: enough to
        be partitioned again, and loud if used before they are written.
        """
        for module, names, parameters, hooks in self._modules:
            module.__dict__["_parameters"] = parameters
            for name in module.__dict__.keys() - names:
                del module.__dict__[name]
            for name, found in _hooks(module):
                for handle in [h for h in found if h not in hooks[name]]:
                    del found[handle]
        lost = [(p, shape) for p, _, shape, _ in self._parameters if p.shape != shape]
        if lost:
            like, largest = lost[0][0], max(shape.numel() for _, shape in lost)
            shared = torch.full((largest,), float("nan"), dtype=like.dtype, device=like.device)
            for parameter, shape in lost:
                parameter.data = shared[: shape.numel()].view(shape)
        for parameter, attributes, _, handles in self._parameters:
            parameter.__dict__.clear()
            parameter.__dict__.update(attributes)
            parameter.grad = None
            for handle in _grad_hooks(parameter).keys() - handles:
                del _grad_hooks(parameter)[handle]


def _grad_hooks(parameter: nn.Parameter) -> dict[int, Any]:
    return parameter._post_accumulate_grad_hooks or {}


def _hooks(module: nn.Module) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in module.__dict__.items() if "_hooks" in k and isinstance(v, dict)]


def release(engine: Any) -> None:
    """Tear an engine down and reset every registry of the process that would outlive it. Not collective.

    The default process group stays; it belongs to the caller. It may also be gone already.
    """
    import deepspeed.comm.comm as comm
    from deepspeed.runtime.zero import parameter_offload, partition_parameters
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
    from deepspeed.utils import groups

    if engine is not None:
        # It asks for its rank, only to log; the group may be broken or gone by now. Rank 1 logs nothing.
        comm.cdb = SimpleNamespace(is_initialized=lambda: True, get_rank=lambda group=None: 1)
        engine.destroy()
    groups._release_process_group_references(group=None)
    comm.cdb = None
    init = partition_parameters.Init
    init.param_id = init.num_persisted_parameters = init.num_persisted_elements = 0
    init.apply_param_persistence = False
    if hasattr(init, "linear_bk"):
        # Its own linear layer, set for the whole process. A member that kept it would produce its gradients in another
        # order than one that never had it, and ZeRO-2 adds up by order: wrong sums, without an error.
        torch.nn.functional.linear = init.linear_bk
    partition_parameters.zero_init_context = 0
    partition_parameters.top_level_context = None
    partition_parameters.temp_contiguous_tensor = None
    partition_parameters.empty_buffers.clear()
    parameter_offload.FWD_MODULE_STACK.clear()
    # A counter that hides in a default argument; members that counted differently refuse to work together.
    parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    # A cache on a method holds every engine that ever was; the method is wrapped, the cache is in the wrapper's cell.
    method = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    for cell in method.__closure__ or ():
        if hasattr(cell.cell_contents, "cache_clear"):
            cell.cell_contents.cache_clear()


def elements(parameter: nn.Parameter) -> int:
    """Number of elements of a parameter, also while it is partitioned."""
    return getattr(parameter, "ds_numel", parameter.numel())
