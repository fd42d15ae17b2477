"""Documents that share a block do not see each other: each is trained as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoal.errors import ConfigError, TaskError
from shoal.tasks import HuggingFaceLM, LanguageModel
from shoal.tasks.base import Task
from shoal.tasks.gpt import attention_mask, positions

pytestmark = pytest.mark.unit

SMALL = LanguageModel(context=16, layers=2, heads=2, width=32, borders="keep")
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 256}
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 256, "attention_dropout": 0.0,
}  # fmt: skip
MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": 3}

PACKED = ((5, 9, 3), (17,), (2, 1, 4, 6), (1, 16))
"""Lengths of the documents in blocks of 17; what is missing is padding."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model_of(task: Task) -> nn.Module:
    torch.manual_seed(0)
    return task.build().eval()


def batch_of(packed: Sequence[Sequence[int]] = PACKED, length: int = 17, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    segments = torch.zeros(len(packed), length, dtype=torch.uint8)
    for row, lengths in zip(segments, packed, strict=True):
        numbers = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))
        row[: len(numbers)] = numbers.to(torch.uint8)
    return {"tokens": torch.randint(0, 256, segments.shape, generator=generator), "segments": segments}


def documents(batch: dict[str, Tensor]) -> list[Tensor]:
    """Tokens [t] of every document."""
    return [
        row[numbers == n]
        for row, numbers in zip(batch["tokens"], batch["segments"], strict=True)
        for n in range(1, int(numbers.max()) + 1)
    ]


def gradients(model: nn.Module, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_positions_begin_anew_and_nobody_sees_across() -> None:
    segments = torch.tensor([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 1], [5, 3, 3, 5, 5, 0, 1]])
    assert positions(segments).tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 1, 0, 0]]
    mask = attention_mask(segments)[:, 0]
    assert mask[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1],
    ]  # fmt: skip
    assert torch.equal(mask[1], torch.ones(7, 7).tril().bool())
    assert mask[2][3].int().tolist() == [0, 0, 0, 1, 0, 0, 0], "a number that comes again is another document"


@pytest.mark.parametrize(
    "task",
    [SMALL, *(HuggingFaceLM(m, context=16, borders="keep") for m in (GPT2, LLAMA, MISTRAL))],
    ids=["own", "gpt2", "llama", "mistral"],
)
def test_a_document_in_a_block_is_trained_as_if_it_were_alone(task: Any) -> None:
    model, batch = model_of(task), batch_of()
    alone: Any = replace(task, borders="cross")
    total, targets, logits = torch.tensor(0.0), 0, []
    for document in documents(batch):
        if len(document) > 1:
            one = replace(alone, context=len(document) - 1)
            total = total + one.loss(model, {"tokens": document[None]}) * (len(document) - 1)
            targets += len(document) - 1
        found = model(document[None, :16])
        logits.append(getattr(found, "logits", found)[0])
    right = gradients(model, total / targets)

    sums, counts = task._nats(model, batch)
    assert counts.sum() == targets
    torch.testing.assert_close(sums.sum(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, sums.sum() / counts.sum()), right, rtol=1e-4, atol=1e-5)

    segments = batch["segments"][:, :-1].long()
    inputs = batch["tokens"][:, :-1]
    if isinstance(task, LanguageModel):
        packed = model(inputs, segments)
    else:
        packed = model(input_ids=inputs, position_ids=positions(segments), use_cache=False).logits
    at = 0
    for row, numbers in zip(packed, segments, strict=True):
        for n in range(1, int(numbers.max()) + 1):
            here = row[numbers == n]
            torch.testing.assert_close(here, logits[at][: len(here)], rtol=1e-5, atol=1e-5)
            at += 1


def test_without_segments_documents_do_see_each_other() -> None:
    """What the test above would not notice if the mask did nothing."""
    model, batch = model_of(SMALL), batch_of(((8, 9),))
    inputs = batch["tokens"][:, :-1]
    seen = model(inputs, batch["segments"][:, :-1]) - model(inputs)
    assert seen[:, :8].abs().max() < 1e-5
    assert seen[:, 8:].abs().max() > 1e-2


def test_which_targets_count() -> None:
    """A document's tokens but the first, its separator too; no padding."""
    batch = batch_of(((5, 9, 2), (17,), (1, 1, 1)))
    _, counts = SMALL._nats(model_of(SMALL), batch)
    assert counts.tolist() == [4 + 8 + 1, 16, 0]


def test_padding_has_neither_loss_nor_gradient() -> None:
    model, batch = model_of(SMALL), batch_of(((5, 4), (7,)))
    other = {**batch, "tokens": torch.where(batch["segments"] == 0, 255 - batch["tokens"], batch["tokens"])}
    assert not torch.equal(other["tokens"], batch["tokens"])
    assert torch.equal(SMALL.loss(model, other), SMALL.loss(model, batch))
    found, right = (gradients(model, SMALL.loss(model, b)) for b in (other, batch))
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("task", [SMALL, HuggingFaceLM(GPT2, context=16, borders="keep")], ids=["own", "gpt2"])
def test_the_loss_is_the_mean_over_samples(task: Task) -> None:
    """What `per_sample` promises: a sample's loss depends on neither its neighbours nor their targets' number."""
    model, batch = model_of(task), batch_of()
    assert task.per_sample
    alone = [task.loss(model, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(len(PACKED))]
    torch.testing.assert_close(task.loss(model, batch), torch.stack(alone).mean())
    torch.testing.assert_close(task.sample_losses(model, batch), torch.stack(alone))
    assert task.tells_samples()
    cross: Any = replace(task, borders="cross")  # type: ignore[call-arg]
    torch.testing.assert_close(cross.sample_losses(model, batch).mean(), cross.loss(model, batch))


def test_a_pass_gives_the_same_bits_wherever_the_samples_lie() -> None:
    """A virtual shard is a pass of its own in `exact`; nothing in it may depend on the others."""
    model, batch = model_of(SMALL), batch_of()
    cut = {k: v[1:3] for k, v in batch.items()}
    copy = {k: v[1:3].clone() for k, v in batch.items()}
    first = gradients(model, SMALL.loss(model, copy))
    SMALL.loss(model, batch).backward()
    assert torch.equal(gradients(model, SMALL.loss(model, cut)), first)


def test_a_block_of_one_document_is_what_it_is_without_segments() -> None:
    model, batch = model_of(SMALL), batch_of(((17,), (17,)))
    cross = replace(SMALL, borders="cross").loss(model, batch)
    torch.testing.assert_close(SMALL.loss(model, batch), cross)


def test_a_sample_without_targets_counts_nothing() -> None:
    model, batch = model_of(SMALL), batch_of(((1, 1, 1), (17,)))
    loss = SMALL.loss(model, batch)
    alone = SMALL.loss(model, {k: v[1:] for k, v in batch.items()})
    torch.testing.assert_close(loss, alone / 2)
    assert gradients(model, SMALL.loss(model, {k: v[:1] for k, v in batch.items()})).abs().max() == 0


def test_the_held_out_loss_is_a_mean_over_targets() -> None:
    model, batch = model_of(SMALL), batch_of(((3,), (17,), (5, 6)))
    parts = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(3)]
    with torch.no_grad():
        each = [{k: float(v) for k, v in SMALL.evaluate(model, p).items()} for p in parts]
        sums, counts = SMALL._nats(model, batch)
        loss = float(SMALL.loss(model, batch))
    means = {k: sum(e[k] for e in each) / 3 for k in each[0]}
    assert means["loss"] == pytest.approx(loss)
    found = SMALL.summarize(means)
    per_target = float(sums.sum() / counts.sum())
    assert abs(per_target - means["loss"]) > 1e-3
    assert found == pytest.approx(
        {"loss": per_target, "perplexity": math.exp(per_target), "bits_per_byte": per_target / math.log(2)}
    )


def test_dropout_and_checkpoints_go_with_it() -> None:
    from shoal.engines.activations import checkpoint_activations

    model, batch = model_of(SMALL).train(), batch_of()
    right = gradients(model, SMALL.loss(model, batch))
    checkpoint_activations(model)
    assert torch.equal(gradients(model, SMALL.loss(model, batch)), right)
    task = replace(SMALL, dropout=0.2)
    assert not task.per_sample
    assert torch.isfinite(task.loss(model_of(task).train(), batch))


@pytest.mark.parametrize("task", [SMALL, HuggingFaceLM(GPT2, context=16, borders="keep")], ids=["own", "hf"])
def test_data_that_does_not_suit(task: Any) -> None:
    assert task.columns == ("tokens", "segments")
    cross = replace(task, borders="cross")
    assert cross.columns == ("tokens",)
    blocks = {"tokens": (17,), "segments": (17,)}
    task.check_data(blocks, {"vocabulary": 256, "borders": "keep", "whole": True})
    cross.check_data({"tokens": (17,)}, {"vocabulary": 256, "borders": "keep", "whole": False})
    with pytest.raises(ConfigError, match=r"holds padding.*set task.borders=keep"):
        cross.check_data({"tokens": (17,)}, {"borders": "keep", "whole": True})
    with pytest.raises(ConfigError, match=r"shape \[9\] in column segments, but task.context=16"):
        task.check_data({**blocks, "segments": (9,)}, {})
    model, batch = model_of(task), batch_of()
    with pytest.raises(TaskError, match=r"segments of shape \[4, 16\]"):
        task.loss(model, {**batch, "segments": batch["segments"][:, 1:]})
    with pytest.raises(ConfigError, match=r"task.borders='keeps' is not one of cross, keep"):
        replace(task, borders="keeps")


@pytest.mark.parametrize(
    "model",
    [
        {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 2, "vocab_size": 256},
        {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 256},
    ],
    ids=["bloom", "mamba"],
)
def test_models_that_see_across_are_refused(model: dict[str, object]) -> None:
    HuggingFaceLM(model, context=16).build()
    with pytest.raises(ConfigError, match=r"borders=keep, but a .* lets tokens see the documents before theirs"):
        HuggingFaceLM(model, context=16, borders="keep").build()


def test_trying_leaves_no_trace_in_the_model() -> None:
    torch.manual_seed(3)
    plain = HuggingFaceLM(GPT2, context=16).build()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    tried = HuggingFaceLM(GPT2, context=16, borders="keep").build()
    assert torch.equal(torch.rand(1), drawn)
    assert tried.training == plain.training
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), tried.parameters(), strict=True))
