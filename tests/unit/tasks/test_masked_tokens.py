"""Masked inputs: the model sees them, the targets are still those of the text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.tasks import HuggingFaceLM, LanguageModel

pytestmark = pytest.mark.unit

SMALL: dict[str, Any] = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 256}


@pytest.mark.parametrize(
    "task",
    [
        LanguageModel(vocabulary=256, context=8, layers=1, heads=2, width=16),
        HuggingFaceLM(model={**SMALL, "attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}, context=8),
    ],
    ids=["gpt", "hugging face"],
)
def test_the_model_sees_what_is_masked_and_predicts_what_was_there(task: Any) -> None:
    torch.manual_seed(0)
    model = task.build()
    text = torch.randint(0, 255, (4, 9), dtype=torch.uint8)
    masked = text.clone()
    masked[:, 3] = 255
    loss = task.loss(model, {"tokens": text, "inputs": masked})
    logits = model(masked[:, :-1].long())
    logits = getattr(logits, "logits", logits)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].long().flatten())
    torch.testing.assert_close(loss, wanted)
    assert loss != task.loss(model, {"tokens": text})
    assert loss != task.loss(model, {"tokens": masked})
