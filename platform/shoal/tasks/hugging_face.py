"""Language modelling with any causal model of `transformers`, built from its configuration: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.errors import ConfigError
from shoal.job.checks import at_least, choice, nearest, positive
from shoal.tasks import tokens
from shoal.tasks.next_token import NextToken, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class HuggingFaceLM(NextToken):
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
    borders: Literal["cross", "keep"] = "cross"
    """Whether tokens see the documents before theirs in the block, as in `LanguageModel`. `keep` is refused for models
    that cannot."""

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
        choice("task.borders", self.borders, tokens.BORDERS)
        if self.bytes_per_token is not None:
            positive("task.bytes_per_token", self.bytes_per_token)

    def check_data(self, columns: Mapping[str, tuple[int | None, ...]], about: Mapping[str, Any]) -> None:
        # Without vocab_size only transformers knows the size; loss() reports a token beyond it.
        vocabulary = self.model.get("vocab_size", about.get("vocabulary", 0))
        tokens.check_blocks(columns, about, context=self.context, vocabulary=vocabulary)
        tokens.check_borders(columns, about, borders=self.borders, context=self.context)
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
        model = AutoModelForCausalLM.from_config(config)
        if self.borders == "keep" and not _keeps_borders(model):
            raise ConfigError(
                f"task.borders=keep, but a {config.model_type} lets tokens see the documents before theirs: it takes "
                f"no position_ids, or carries a state across borders; use another model_type, or task.borders=cross"
            )
        return model

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

    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.model.get("vocab_size"), "the model's vocabulary", "task.model.vocab_size")

    def _logits(self, model: nn.Module, inputs: Tensor, segments: Tensor | None) -> Tensor:
        return _logits(model, inputs, segments)


def _logits(model: Any, inputs: Tensor, segments: Tensor | None) -> Tensor:
    """With segments, every document by itself: transformers makes the mask that the model's kind of attention needs,
    sliding windows too, from positions that begin anew."""
    if segments is None:
        return model(input_ids=inputs, use_cache=False).logits
    from shoal.tasks.gpt import positions

    return model(input_ids=inputs, position_ids=positions(segments), use_cache=False).logits


def _keeps_borders(model: Any) -> bool:
    """Whether a document gets the logits behind another one that it gets alone. Found out by trying: models differ."""
    import torch

    ahead, document = torch.tensor([[1, 1, 1]]), torch.tensor([[0, 1, 0, 0, 1]])
    both = torch.cat([ahead, document], dim=1)
    segments = torch.tensor([[1] * ahead.shape[1] + [2] * document.shape[1]])
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            alone = _logits(model, document, None)
            behind = _logits(model, both, segments)[:, ahead.shape[1] :]
    except TypeError:  # it takes no positions
        return False
    finally:
        model.train(training)
    return bool((behind - alone).abs().max() <= 1e-3 * alone.std())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
