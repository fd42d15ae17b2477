"""What all language models share: packed blocks of tokens in, loss in nats and its derived units out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError, TaskError

if TYPE_CHECKING:
    from torch import Tensor

    from shoal.tasks.base import Batch

COLUMN = "tokens"
SEGMENTS = "segments"
"""Column that says to which document of its block each token belongs, from 1; PADDING where there is none."""
PADDING = 0
BORDERS = ("cross", "keep")
"""Values of `task.borders`: whether tokens see the documents before theirs in the block."""
INPUTS = "inputs"
"""Column that MaskTokens (`data.augment`) makes: what the model sees in the place of `tokens`."""
BYTES = 256
"""Vocabulary of byte-level text."""
NATS, TARGETS = "nats_per_sample", "targets_per_sample"
"""Metrics from which the loss per counted target is made."""


def inputs_and_targets(batch: Batch, context: int) -> tuple[Tensor, Tensor]:
    """`tokens` [n, context + 1] of any integer type -> inputs [n, context], targets [n, context], both int64.

    Where the batch has `inputs`, too, the model sees those, and the targets are still of `tokens`.
    While `data.length_warmup` lasts, they are shorter. Raises TaskError if the blocks are longer, or no sequences.
    """
    tokens = batch[COLUMN]
    if tokens.dim() != 2 or not 2 <= tokens.shape[1] <= context + 1:
        raise TaskError(
            f"a batch of {COLUMN} has shape {list(tokens.shape)}, but a model with context={context} needs "
            f"[samples, {context + 1}]: the context and the token after it; {_mend(tokens.shape[-1])}"
        )
    seen = tokens if batch.get(INPUTS) is None else batch[INPUTS]
    return seen[:, :-1].long(), tokens[:, 1:].long()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all targets, in nats. logits [n, t, vocabulary] of any floating type; computed in fp32.

    In one piece: on CPU, slices that stay in the cache were not measurably faster.
    """
    from torch.nn import functional

    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def segments(batch: Batch) -> Tensor:
    """`segments` [n, context + 1] as int64. Raises TaskError if they have another shape than `tokens`."""
    found = batch[SEGMENTS]
    if found.shape != batch[COLUMN].shape:
        raise TaskError(
            f"a batch has {SEGMENTS} of shape {list(found.shape)} and {COLUMN} of shape {list(batch[COLUMN].shape)}; "
            f"give every token its segment, as `shoal data prepare --borders keep` does"
        )
    return found.long()


def nats(logits: Tensor, targets: Tensor, segments: Tensor | None) -> tuple[Tensor, Tensor]:
    """For each sample its loss in nats, summed over the targets that count, and their number: both [n], fp32.

    logits [n, t, vocabulary], targets [n, t], segments [n, t + 1]. A target counts if it belongs to the document of the
    token before it: the first token of a document and padding are nobody's to predict, the separator at a document's
    end is. Without segments all count.
    """
    import torch
    from torch.nn import functional

    counted = torch.ones_like(targets, dtype=torch.bool)
    if segments is not None:
        counted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] != PADDING)
    left_out = -100  # torch's word for a target that has neither loss nor gradient
    each = functional.cross_entropy(
        logits.flatten(0, 1).float(),
        targets.masked_fill(~counted, left_out).flatten(),
        ignore_index=left_out,
        reduction="none",
    )
    return each.view_as(targets).sum(1), counted.sum(1).float()


def sample_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Each sample's mean over its targets that count; 0 if none does. All [n]."""
    return sums / counts.clamp(min=1)


def metrics(sums: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Means over samples from which `summarize` makes the loss per target that counts, whatever its sample."""
    return {"loss": sample_means(sums, counts).mean(), NATS: sums.mean(), TARGETS: counts.mean()}


def check_borders(
    columns: Mapping[str, tuple[int | None, ...]], about: Mapping[str, Any], *, borders: str, context: int
) -> None:
    """Raise ConfigError unless the data suits `task.borders`."""
    if borders == "cross" and about.get("whole"):
        raise ConfigError(
            "the data holds padding (it was prepared with --whole), which task.borders=cross would train on; set "
            "task.borders=keep"
        )
    shape = columns.get(SEGMENTS, (None,))
    if borders == "keep" and (len(shape) != 1 or shape[0] not in (None, context + 1)):
        raise ConfigError(
            f"the data has samples of shape {list(shape)} in column {SEGMENTS}, but task.context={context} needs one "
            f"number for each of {context + 1} tokens; prepare it with `shoal data prepare --borders keep`"
        )


def check_blocks(
    columns: Mapping[str, tuple[int | None, ...]], about: Mapping[str, Any], *, context: int, vocabulary: int
) -> None:
    """Raise ConfigError unless blocks of `context + 1` tokens below `vocabulary` are what the data holds."""
    shape = columns.get(COLUMN, (None,))
    if len(shape) != 1 or shape[0] not in (None, context + 1):
        raise ConfigError(
            f"the data has samples of shape {list(shape)} in column {COLUMN}, but task.context={context} needs "
            f"blocks of {context + 1}: the context and the token after it; {_mend(shape[-1] if shape else None)}"
        )
    used = about.get("vocabulary")
    if used is not None and used > vocabulary:
        raise ConfigError(
            f"the data was made with a vocabulary of {used} tokens ({about.get('tokenizer', 'unknown tokenizer')}), "
            f"but the model has {vocabulary}; make the model's vocabulary {used}"
        )


def check_bytes_per_token(given: float | None, about: Mapping[str, Any]) -> None:
    """Raise ConfigError if the data knows better than `given` how many bytes of text a token stands for."""
    known = about.get("bytes_per_token")
    if given is not None and known is not None and abs(given - known) > 0.01 * known:
        raise ConfigError(
            f"task.bytes_per_token={given:g}, but the data has {known:.4g} bytes per token; set "
            f"task.bytes_per_token={known:.4g}"
        )


def summarize(means: dict[str, float], bytes_per_token: float | None) -> dict[str, float]:
    """`loss` (nats per token) with `perplexity`, and `bits_per_byte` if the bytes that a token stands for are known.

    Where not all targets count, `loss` becomes the mean over all that do: a block with few of them weighs less.
    """
    means = dict(means)
    total, targets = means.pop(NATS, None), means.pop(TARGETS, None)
    if total is not None and targets:
        means["loss"] = total / targets
    loss = means["loss"]
    derived = {"perplexity": math.exp(min(loss, 700.0))}  # e^710 is more than a float holds
    if bytes_per_token is not None:
        derived["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return {**means, **derived}


def _mend(length: int | None) -> str:
    advice = f"set task.context={length - 1}, or " if length and length > 1 else ""
    return f"{advice}pack the text into blocks of one token more than the context"
