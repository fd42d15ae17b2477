"""Language modelling with a compact transformer: the default task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.errors import ConfigError
from shoal.job.checks import at_least, choice, fraction, positive
from shoal.tasks import tokens
from shoal.tasks.next_token import NextToken, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shoal.tasks.gpt import Shape


@dataclass(frozen=True, kw_only=True)
class LanguageModel(NextToken):
    """Predict the next token with a `shoal.tasks.gpt.GPT`. Column `tokens`: blocks of context + 1 tokens.

    The exported model is a Llama to `transformers`.
    """

    vocabulary: int = tokens.BYTES
    context: int = 128
    """Tokens that the model sees; blocks of data are one token longer."""
    layers: int = 3
    heads: int = 4
    width: int = 128
    hidden: int | None = None
    """Width inside the MLP; default: 8/3 of the width, rounded down to a multiple of 32."""
    dropout: float = 0.0
    tied: bool = True
    """Whether the output projection is the embedding itself."""
    bytes_per_token: float | None = None
    """Bytes of text that a token stands for, on average; for `bits_per_byte`. Default: 1 if the vocabulary is 256."""
    borders: Literal["cross", "keep"] = "cross"
    """Whether tokens see the documents before theirs in the block. `keep`: they see their own only, which the column
    `segments` tells apart; positions begin anew, and a document's first token is not predicted."""

    def __post_init__(self) -> None:
        for name in ("vocabulary", "context", "layers", "heads", "width"):
            at_least(f"task.{name}", getattr(self, name), 1)
        fraction("task.dropout", self.dropout)
        choice("task.borders", self.borders, tokens.BORDERS)
        if self.hidden is not None:
            positive("task.hidden", self.hidden)
        if self.bytes_per_token is not None:
            positive("task.bytes_per_token", self.bytes_per_token)
        if self.width % (2 * self.heads):
            fitting = [h for h in range(1, self.width // 2 + 1) if self.width % (2 * h) == 0]
            near = min(fitting, key=lambda h: abs(h - self.heads), default=None)
            remedy = f"use heads={near}" if near else "use an even width"
            raise ConfigError(
                f"task.width={self.width} cannot be split into task.heads={self.heads} heads of equal, even width "
                f"(rotary positions turn pairs); {remedy}, or a width that is a multiple of {2 * self.heads}"
            )

    @property
    def per_sample(self) -> bool:  # type: ignore[override]
        return self.dropout == 0

    def check_data(self, columns: Mapping[str, tuple[int | None, ...]], about: Mapping[str, Any]) -> None:
        tokens.check_blocks(columns, about, context=self.context, vocabulary=self.vocabulary)
        tokens.check_borders(columns, about, borders=self.borders, context=self.context)
        tokens.check_bytes_per_token(self.bytes_per_token, about)

    def shape(self) -> Shape:
        """The sizes of the model."""
        from shoal.tasks.gpt import Shape

        return Shape(
            vocabulary=self.vocabulary,
            context=self.context,
            layers=self.layers,
            heads=self.heads,
            width=self.width,
            hidden=self.hidden or max(32, self.width * 8 // 3 // 32 * 32),
            dropout=self.dropout,
            tied=self.tied,
        )

    def build(self) -> nn.Module:
        from shoal.tasks.gpt import GPT

        return GPT(self.shape())

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.vocabulary, f"task.vocabulary={self.vocabulary}", "task.vocabulary")

    def _logits(self, model: nn.Module, inputs: Tensor, segments: Tensor | None) -> Tensor:
        return model(inputs) if segments is None else model(inputs, segments)

    def config(self, model: nn.Module) -> dict[str, Any]:
        """A Llama configuration: `transformers.AutoModelForCausalLM.from_pretrained` loads the exported folder."""
        from shoal.tasks.gpt import NORM_EPS, ROTARY_BASE

        shape = self.shape()
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": shape.context,
            "hidden_size": shape.width,
            "intermediate_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "head_dim": shape.width // shape.heads,
            "hidden_act": "silu",
            "rms_norm_eps": NORM_EPS,
            "rope_theta": ROTARY_BASE,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": shape.tied,
            "bos_token_id": None,
            "eos_token_id": None,
        }
