"""Language modelling with any causal model of `transformers`, built from its configuration: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.errors import ConfigError, TaskError
from shoal.job.checks import at_least, nearest, positive
from shoal.tasks import tokens
from shoal.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class HuggingFaceLM(Task):
    """Predict the next token with a fresh `transformers` model. Column `tokens`: blocks of context + 1 tokens.

    `HuggingFaceLM({"model_type": "gpt2", "n_embd": 64, "vocab_size": 256})`, or with a configuration object:
    `HuggingFaceLM(GPT2Config(n_embd=64))`. Its values can be set: `--set task.model.n_embd=128`. The exported folder is
    loaded by `AutoModelForCausalLM.from_pretrained`.
    """

    model: Any
    """Dictionary with `model_type` and whatever values differ from that type's defaults; a configuration object is
    turned into one."""
    context: int = 128
    """Tokens that the model sees; blocks of data are one token longer."""
    bytes_per_token: float | None = None
    """Bytes of text that a token stands for, on average; for `bits_per_byte`. Default: 1 if vocab_size is 256."""

    columns = (tokens.COLUMN,)
    per_sample = True

    def __post_init__(self) -> None:
        # By duck typing, because importing transformers takes seconds and a recipe should load in milliseconds.
        model = self.model.to_diff_dict() if hasattr(self.model, "to_diff_dict") else self.model
        if not isinstance(model, Mapping) or "model_type" not in model:
            raise ConfigError(
                f"HuggingFaceLM(model={_short(self.model)}) must be a transformers configuration, or a dictionary with "
                f"its model_type, for example {{'model_type': 'gpt2', 'n_embd': 128}}; names of models to download "
                f"are not taken, because training starts from fresh weights"
            )
        object.__setattr__(self, "model", dict(model))
        at_least("task.context", self.context, 1)
        if self.bytes_per_token is not None:
            positive("task.bytes_per_token", self.bytes_per_token)

    @property
    def tokens_per_sample(self) -> int:  # type: ignore[override]
        return self.context

    def check_data(self, columns: Mapping[str, tuple[int | None, ...]], about: Mapping[str, Any]) -> None:
        # Without vocab_size only transformers knows the size; loss() reports a token beyond it.
        vocabulary = self.model.get("vocab_size", about.get("vocabulary", 0))
        tokens.check_blocks(columns, about, context=self.context, vocabulary=vocabulary)
        tokens.check_bytes_per_token(self.bytes_per_token, about)

    def build(self) -> nn.Module:
        try:
            from transformers import AutoModelForCausalLM
        except ImportError:
            raise ConfigError("HuggingFaceLM needs transformers; install it with: pip install 'shoal[hf]'") from None
        config = self._configuration()
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and limit < self.context:
            raise ConfigError(
                f"task.context={self.context} is more than the {limit} positions of {config.model_type}; lower it, or "
                f"set task.model.max_position_embeddings={self.context}"
            )
        return AutoModelForCausalLM.from_config(config)

    def _configuration(self) -> Any:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

        values = dict(self.model)
        kind = values.pop("model_type")
        if kind not in CAUSAL:
            raise ConfigError(
                f"task.model.model_type={kind!r} is no causal language model of transformers"
                f"{nearest(str(kind), list(CAUSAL))}"
            )
        known = AutoConfig.for_model(kind)
        unknown = [name for name in values if not hasattr(known, name) and not name.startswith("_")]
        if unknown:
            names = sorted({*known.to_dict(), *known.attribute_map})
            raise ConfigError(
                f"task.model.{unknown[0]} is not in the configuration of {kind}{nearest(unknown[0], names)}"
            )
        return AutoConfig.for_model(kind, **values)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = tokens.inputs_and_targets(batch, self.context)
        try:
            logits = model(input_ids=inputs, use_cache=False).logits
            return tokens.cross_entropy(logits, targets)
        except IndexError as error:
            raise TaskError(
                f"the data holds a token outside the model's vocabulary ({error}); set task.model.vocab_size to the "
                f"tokenizer's"
            ) from error

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        byte_level = self.bytes_per_token is None and self.model.get("vocab_size") == tokens.BYTES
        return tokens.summarize(means, 1.0 if byte_level else self.bytes_per_token)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
