from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import shoal
from shoal.errors import ConfigError, TaskError
from shoal.job.overrides import apply
from shoal.state.export import export_model
from shoal.tasks import HuggingFaceLM

pytestmark = pytest.mark.unit

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 256}


def tokens(length: int = 17, below: int = 256) -> torch.Tensor:
    return torch.randint(0, below, (2, length), generator=torch.Generator().manual_seed(0))


def test_a_dictionary_makes_a_model_that_trains() -> None:
    task = HuggingFaceLM(GPT2, context=16)
    torch.manual_seed(0)
    model = task.build()
    assert type(model).__name__ == "GPT2LMHeadModel"
    loss = task.loss(model, {"tokens": tokens()})
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert task.summarize({"loss": 1.0})["bits_per_byte"] == pytest.approx(1.4427, abs=1e-4)


def test_a_configuration_object_makes_the_same_job_as_a_dictionary() -> None:
    from transformers import GPT2Config

    values: dict[str, Any] = {k: v for k, v in GPT2.items() if k != "model_type"}
    task = HuggingFaceLM(GPT2Config(**values), context=16)
    assert isinstance(task.model, dict)
    assert task.model["n_embd"] == 32
    assert pickle.loads(pickle.dumps(task)) == task
    assert sum(p.numel() for p in task.build().parameters()) == sum(
        p.numel() for p in HuggingFaceLM(GPT2, context=16).build().parameters()
    )


def test_its_values_can_be_set_from_the_command_line() -> None:
    job = shoal.Job(task=HuggingFaceLM(GPT2), data=shoal.Data(train="x"), budget=shoal.Budget(steps=1))
    task: Any = apply(job, ["task.model.n_embd=64", "task.context=32"]).task
    assert (task.model["n_embd"], task.tokens_per_sample) == (64, 32)


def test_the_exported_model_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    task = HuggingFaceLM(GPT2, context=16)
    model = task.build().eval()
    export_model(dict(model.named_parameters()), dict(model.named_buffers()), task, model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    x = tokens(16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x).logits, model(x).logits)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("gpt2", r"names of models to download are not taken"),
        ({"n_embd": 32}, r"with its model_type"),
    ],
)
def test_what_is_no_configuration_is_refused_at_once(model: object, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        HuggingFaceLM(model)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"model_type": "gtp2"}, r"model_type='gtp2' is no causal language model .*did you mean \"gpt2\""),
        ({**GPT2, "n_embed": 64}, r"task.model.n_embed is not in the configuration of gpt2; did you mean \"n_embd\""),
        ({**GPT2, "n_positions": 8}, r"task.context=16 is more than the 8 positions"),
    ],
)
def test_wrong_values_are_named_when_the_model_is_built(model: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        HuggingFaceLM(model, context=16).build()


def test_data_that_does_not_suit() -> None:
    task = HuggingFaceLM(GPT2, context=16)
    with pytest.raises(ConfigError, match=r"vocabulary of 300"):
        task.check_data({"tokens": (17,)}, {"vocabulary": 300})
    with pytest.raises(TaskError, match=r"task.model.vocab_size"):
        task.loss(task.build(), {"tokens": tokens(below=9999)})
