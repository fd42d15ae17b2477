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
BYTES = 256
"""Vocabulary of byte-level text."""


def inputs_and_targets(batch: Batch, context: int) -> tuple[Tensor, Tensor]:
    """`tokens` [n, context + 1] of any integer type -> inputs [n, context], targets [n, context], both int64.

    Raises TaskError if the blocks have another length.
    """
    tokens = batch[COLUMN]
    if tokens.dim() != 2 or tokens.shape[1] != context + 1:
        raise TaskError(
            f"a batch of {COLUMN} has shape {list(tokens.shape)}, but a model with context={context} needs "
            f"[samples, {context + 1}]: the context and the token after it; {_mend(tokens.shape[-1])}"
        )
    tokens = tokens.long()
    return tokens[:, :-1], tokens[:, 1:]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all targets, in nats. logits [n, t, vocabulary] of any floating type; computed in fp32.

    In one piece: on CPU, slices that stay in the cache were not measurably faster.
    """
    from torch.nn import functional

    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


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
    """`loss` (nats per token) with `perplexity`, and `bits_per_byte` if the bytes that a token stands for are known."""
    loss = means["loss"]
    derived = {"perplexity": math.exp(min(loss, 700.0))}  # e^710 is more than a float holds
    if bytes_per_token is not None:
        derived["bits_per_byte"] = loss / math.log(2) / bytes_per_token
    return {**means, **derived}


def _mend(length: int | None) -> str:
    advice = f"set task.context={length - 1}, or " if length and length > 1 else ""
    return f"{advice}pack the text into blocks of one token more than the context"
