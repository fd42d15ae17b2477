from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shoal.errors import ConfigError, TaskError
from shoal.state.export import export_model
from shoal.tasks import LanguageModel
from shoal.tasks.gpt import GPT, rotary_angles, rotate

pytestmark = pytest.mark.unit

SMALL = LanguageModel(context=16, layers=2, heads=2, width=32)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(task: LanguageModel, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = task.build()
    assert isinstance(model, GPT)
    return model


def blocks(n: int = 3, length: int = 17, vocabulary: int = 256, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (n, length), generator=generator)


def test_a_fresh_model_knows_nothing_and_every_parameter_learns() -> None:
    model = model_of(SMALL)
    loss = SMALL.loss(model, {"tokens": blocks(8)})
    assert loss.item() == pytest.approx(math.log(256), rel=0.15)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_no_token_sees_what_comes_after_it() -> None:
    model = model_of(SMALL).eval()
    one = blocks(2, 16)
    other = one.clone()
    other[:, 9:] = (other[:, 9:] + 1) % 256
    with torch.no_grad():
        a, b = model(one), model(other)
    torch.testing.assert_close(a[:, :9], b[:, :9])
    assert (a[:, 9:] - b[:, 9:]).abs().max() > 1e-3


def test_attention_depends_on_distances_not_on_places() -> None:
    angles = rotary_angles(12, 8)
    q, k = torch.randn(2, 1, 1, 1, 8)
    turned = [rotate(x.expand(1, 1, 12, 8), angles.cos(), angles.sin())[0, 0] for x in (q, k)]
    products = turned[0] @ turned[1].T
    for distance in (0, 3):
        along = torch.diagonal(products, distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))


def test_the_loss_is_the_mean_over_samples() -> None:
    """What `per_sample` promises, and what sharing a forward pass among virtual shards rests on."""
    model, tokens = model_of(SMALL), blocks(4)
    assert SMALL.per_sample
    alone = torch.stack([SMALL.loss(model, {"tokens": tokens[i : i + 1]}) for i in range(4)])
    torch.testing.assert_close(SMALL.loss(model, {"tokens": tokens}), alone.mean())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16])
def test_tokens_may_be_any_integers(dtype: torch.dtype) -> None:
    model, tokens = model_of(SMALL), blocks()
    assert torch.equal(SMALL.loss(model, {"tokens": tokens.to(dtype)}), SMALL.loss(model, {"tokens": tokens}))


def test_it_learns() -> None:
    model, tokens = model_of(SMALL), blocks(4, vocabulary=8).to(torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = SMALL.loss(model, {"tokens": tokens})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_the_size_is_what_the_fields_say() -> None:
    width, hidden, layers = 32, 64, 2
    per_layer = 4 * width * width + 3 * width * hidden + 2 * width
    tied = 256 * width + layers * per_layer + width
    assert sum(p.numel() for p in model_of(SMALL).parameters()) == tied
    untied = model_of(replace(SMALL, tied=False))
    assert sum(p.numel() for p in untied.parameters()) == tied + 256 * width


def test_with_dropout_it_promises_nothing_and_evaluates_without() -> None:
    task = replace(SMALL, dropout=0.2)
    model, batch = model_of(task), {"tokens": blocks()}
    assert not task.per_sample
    assert task.loss(model, batch) != task.loss(model, batch)
    model.eval()
    assert task.evaluate(model, batch)["loss"] == task.evaluate(model, batch)["loss"]


def test_transformers_loads_the_exported_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = model_of(SMALL).eval()
    export_model(dict(model.named_parameters()), dict(model.named_buffers()), SMALL, model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == "LlamaForCausalLM"
    tokens = blocks(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-5)


def test_the_exported_weights_load_into_plain_torch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = model_of(SMALL).eval()
    export_model(dict(model.named_parameters()), dict(model.named_buffers()), SMALL, model, tmp_path)
    again = model_of(SMALL, seed=5).eval()
    again.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    tokens = blocks(2, 16)
    assert torch.equal(again(tokens), model(tokens))


def test_bits_per_byte() -> None:
    nat = {"loss": math.log(2) * 2}
    assert SMALL.summarize(nat) == pytest.approx({"loss": nat["loss"], "perplexity": 4, "bits_per_byte": 2})
    tokenized = replace(SMALL, vocabulary=1000, bytes_per_token=4.0)
    assert tokenized.summarize(nat)["bits_per_byte"] == pytest.approx(0.5)
    assert "bits_per_byte" not in replace(SMALL, vocabulary=1000).summarize(nat)


def test_a_diverged_loss_is_summarized_too() -> None:
    assert math.isfinite(SMALL.summarize({"loss": 5000.0})["perplexity"])
    assert math.isnan(SMALL.summarize({"loss": math.nan})["perplexity"])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"heads": 3}, r"task.width=32 cannot be split into task.heads=3 .* use heads=2"),
        ({"layers": 0}, r"task.layers=0 must be at least 1"),
        ({"dropout": 1.0}, r"task.dropout=1.0 must lie between 0 and 1"),
        ({"width": 7, "heads": 1}, r"use an even width"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, float], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        replace(SMALL, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "about", "reason"),
    [
        ((129,), {}, r"task.context=16 needs blocks of 17.*set task.context=128"),
        ((17, 3), {}, r"shape \[17, 3\]"),
        ((17,), {"vocabulary": 50257, "tokenizer": "gpt2"}, r"vocabulary of 50257 tokens \(gpt2\).*has 256"),
    ],
)
def test_data_that_does_not_suit_is_refused_at_the_start(
    shape: tuple[int, ...], about: dict[str, object], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        SMALL.check_data({"tokens": shape}, about)


def test_data_that_suits_passes() -> None:
    SMALL.check_data({"tokens": (17,)}, {"vocabulary": 256, "bytes_per_token": 1.0, "block": 17})
    SMALL.check_data({"tokens": (None,)}, {})
    with pytest.raises(ConfigError, match=r"task.bytes_per_token=2, but the data has 3.5"):
        replace(SMALL, bytes_per_token=2.0).check_data({"tokens": (17,)}, {"bytes_per_token": 3.5})


def test_wrong_batches_give_a_remedy_not_a_puzzle() -> None:
    model = model_of(SMALL)
    with pytest.raises(TaskError, match=r"shape \[3, 33\].*set task.context=32"):
        SMALL.loss(model, {"tokens": blocks(3, 33)})
    few = replace(SMALL, vocabulary=10)
    with pytest.raises(TaskError, match=r"outside task.vocabulary=10"):
        few.loss(model_of(few), {"tokens": torch.full((1, 17), 10)})


def test_it_travels() -> None:
    assert pickle.loads(pickle.dumps(SMALL)) == SMALL
