"""The trained model as files that plain torch and transformers load: `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from shoal.state.safetensors_file import write_tensors
from shoal.state.storage import Storage
from shoal.tasks.base import Task

if TYPE_CHECKING:
    import pyarrow.fs as pafs

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

_log = logging.getLogger(__name__)


def export_model(
    parameters: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
    task: Task,
    model: torch.nn.Module,
    uri: str | os.PathLike[str],
    filesystem: pafs.FileSystem | None = None,
) -> str:
    """Write weights and configuration into the folder `uri`; returns its full URI.

    `parameters` are whole (each in its own shape), by the names of `model.named_parameters()`; `buffers` by those of
    `model.named_buffers()`. The keys are those of `model.state_dict()`, so that it loads strictly; tied weights
    are written under each of their names. Values of the model itself are used for nothing but missing buffers, so
    its parameters may be sharded. Each file appears whole or not at all, the configuration last. Raises
    CheckpointError if the storage fails; an earlier export of the same model is then still whole.
    """
    folder = Storage(uri, filesystem)
    weights = _state_dict(parameters, buffers, model)
    config = json.dumps(_config(task, model), indent=2, default=str).encode() + b"\n"
    if folder.read(CONFIG) not in (None, config):
        folder.delete_file(CONFIG)  # the weights of one model never lie beside the configuration of another
    with folder.writing(WEIGHTS) as stream:
        write_tensors(stream, weights, {"format": "pt"})
    with folder.writing(CONFIG) as stream:
        stream.write(config)
    return folder.uri


def _state_dict(
    parameters: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor], model: torch.nn.Module
) -> dict[str, torch.Tensor]:
    first_names = {id(p): name for name, p in model.named_parameters()}
    out: dict[str, torch.Tensor] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            _log.warning("%s is no tensor and is not exported; give strict=False when you load the state_dict", key)
        elif id(value) in first_names:
            out[key] = parameters[first_names[id(value)]]
        else:
            out[key] = buffers.get(key, value)
    return out


def _config(task: Task, model: torch.nn.Module) -> dict[str, Any]:
    config = dict(task.config(model))
    if "model_type" in config:  # a transformers configuration: what save_pretrained() would add
        config["architectures"] = config.get("architectures") or [type(model).__name__]
        config["dtype"] = "float32"
    return config
