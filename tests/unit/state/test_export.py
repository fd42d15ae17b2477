"""Exported models load without Shoal: plain torch strictly, transformers by folder."""

from __future__ import annotations

import json

import pyarrow.fs as pafs
import pytest
import safetensors.torch
import torch
from torch import nn

from shoal.errors import CheckpointError
from shoal.state.export import export_model
from shoal.tasks.base import Task
from tests.support.failing_filesystem import FailingHandler

pytestmark = pytest.mark.unit


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("cache", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embed(x)))


class TiedTask(Task):
    def build(self) -> nn.Module:
        return Tied()


def trained(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Other values than the model holds: an engine may keep only a shard in the model itself."""
    parameters = {name: torch.randn(p.shape) for name, p in model.named_parameters()}
    return parameters, {name: b + 1 for name, b in model.named_buffers()}


@pytest.mark.parametrize("uri", [False, True])
def test_a_plain_model_loads_strictly_tied_weights_and_buffers_included(tmp_path, uri):
    model, folder = Tied(), tmp_path / "model"
    parameters, buffers = trained(model)
    said = export_model(parameters, buffers, TiedTask(), model, folder.as_uri() if uri else folder)
    assert said == (folder.as_uri() if uri else str(folder))
    fresh = Tied()
    fresh.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=True)
    assert fresh.head.weight is fresh.embed.weight
    assert torch.equal(fresh.head.weight, parameters["embed.weight"])
    assert torch.equal(fresh.norm.running_var, buffers["norm.running_var"])
    assert fresh.norm.num_batches_tracked == 1
    assert json.loads((folder / "config.json").read_text())["task"].endswith("TiedTask")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_a_model_whose_parameters_are_elsewhere_is_exported_all_the_same(tmp_path):
    model = Tied()
    parameters, buffers = trained(model)
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    export_model(parameters, buffers, TiedTask(), model, tmp_path)
    Tied().load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_transformers_model_loads_from_its_folder(tmp_path, kind):
    import transformers

    sizes = {"gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8}}.get(
        kind, {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    )
    config = transformers.AutoConfig.for_model(kind, vocab_size=32, bos_token_id=0, eos_token_id=0, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    parameters, buffers = trained(model)
    export_model(parameters, buffers, TiedTask(), model, tmp_path)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(loaded) is type(model)
    assert loaded.dtype == torch.float32
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, parameters[name]), name
    again = transformers.AutoModelForCausalLM.from_config(config)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"), strict=True)


def test_an_export_torn_at_any_point_leaves_the_earlier_one_whole(tmp_path):
    model = Tied()
    old, buffers = trained(model)
    new, _ = trained(model)
    whole = FailingHandler()
    export_model(new, buffers, TiedTask(), model, tmp_path / "count", pafs.PyFileSystem(whole))
    export_model(old, buffers, TiedTask(), model, tmp_path / "model")
    for fail_at in range(len(whole.done)):
        failing = pafs.PyFileSystem(FailingHandler(fail_at=fail_at, dead=True))
        with pytest.raises(CheckpointError, match=r"cannot write .*\.(safetensors|json): .*injected"):
            export_model(new, buffers, TiedTask(), model, tmp_path / "model", failing)
        loaded = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
        assert any(torch.equal(loaded["embed.weight"], p["embed.weight"]) for p in (old, new))
        assert (tmp_path / "model" / "config.json").exists()


def test_the_configuration_of_another_model_never_lies_beside_the_weights(tmp_path):
    model = Tied()
    parameters, buffers = trained(model)
    (tmp_path / "config.json").write_text('{"task": "another"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError):
        export_model(
            parameters, buffers, TiedTask(), model, tmp_path, pafs.PyFileSystem(FailingHandler(fail_at=4, dead=True))
        )
    assert [p.name for p in tmp_path.glob("*.json")] == ["tokenizer.json"], "other people's files stay"
    export_model(parameters, buffers, TiedTask(), model, tmp_path)
    assert (tmp_path / "config.json").exists()
