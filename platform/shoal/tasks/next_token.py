"""What language models have in common, whatever the model: inputs, targets, borders of documents, losses, metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

from shoal.errors import TaskError
from shoal.tasks import tokens
from shoal.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


class Vocabulary(NamedTuple):
    """The tokens that a model knows."""

    size: int | None
    """None: only the model's library knows."""
    shown: str
    """As a message names it."""
    field: str
    """Where it is set."""


class NextToken(Task, ABC):
    """Predict the next token of blocks of context + 1 tokens. A dataclass that derives from it has these fields."""

    context: int
    bytes_per_token: float | None
    borders: Literal["cross", "keep"]

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (tokens.COLUMN, tokens.SEGMENTS) if self.borders == "keep" else (tokens.COLUMN,)

    @property
    def tokens_per_sample(self) -> int:  # type: ignore[override]
        return self.context

    @abstractmethod
    def _vocabulary(self) -> Vocabulary:
        """The model's."""

    @abstractmethod
    def _logits(self, model: nn.Module, inputs: Tensor, segments: Tensor | None) -> Tensor:
        """[n, t, vocabulary] for `inputs` [n, t]; with `segments` [n, t] every document by itself."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the samples; with `borders=keep`, of each sample's mean over the targets that count."""
        if self.borders == "keep":
            return self.sample_losses(model, batch).mean()
        inputs, targets = tokens.inputs_and_targets(batch, self.context)
        with self._known_tokens():
            return tokens.cross_entropy(self._logits(model, inputs, None), targets)

    def sample_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Each sample's mean over its targets that count, in nats: [n]."""
        return tokens.sample_means(*self._nats(model, batch))

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if self.borders == "keep":
            return tokens.metrics(*self._nats(model, batch))
        return super().evaluate(model, batch)

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        byte_level = self.bytes_per_token is None and self._vocabulary().size == tokens.BYTES
        return tokens.summarize(means, 1.0 if byte_level else self.bytes_per_token)

    def _nats(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        inputs, targets = tokens.inputs_and_targets(batch, self.context)
        segments = tokens.segments(batch) if self.borders == "keep" else None
        with self._known_tokens():
            logits = self._logits(model, inputs, None if segments is None else segments[:, :-1])
            return tokens.nats(logits, targets, segments)

    @contextmanager
    def _known_tokens(self) -> Iterator[None]:
        try:
            yield
        except IndexError as error:
            known = self._vocabulary()
            raise TaskError(
                f"the data holds a token outside {known.shown} ({error}); set {known.field} to the tokenizer's"
            ) from error
