"""A compact decoder-only transformer in plain torch.

Pre-norm RMSNorm blocks, rotary positions, causal attention through `scaled_dot_product_attention`, a gated MLP, no
biases. Mathematics and parameter names are those of Llama (Touvron et al. 2023), so that what Shoal exports is loaded
by `transformers.AutoModelForCausalLM` as it is; this file needs nothing but torch, too. The blocks stand in one
`nn.ModuleList`, where activation checkpointing finds them. Nothing draws random numbers unless `dropout > 0`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM_EPS = 1e-6
ROTARY_BASE = 10_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes of a model."""

    vocabulary: int
    context: int
    """Longest sequence, in tokens."""
    layers: int
    heads: int
    width: int
    hidden: int
    """Width inside the MLP."""
    dropout: float = 0.0
    tied: bool = True
    """Whether the output projection is the embedding itself."""


class GPT(nn.Module):
    """Tokens [n, t] (any integer type, t <= context) -> logits [n, t, vocabulary].

    With `segments` [n, t] (any integer type, another number than before at every border) a token sees its own document
    only, and positions begin anew with each: every document gets the logits that it would get alone.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.model = Trunk(shape)
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        initialise(self, shape.layers)
        if shape.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        return self.lm_head(self.model(tokens, segments))


class Trunk(nn.Module):
    """Tokens [n, t], and their segments or None -> features [n, t, width]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.dropout = nn.Dropout(shape.dropout) if shape.dropout else nn.Identity()
        angles = rotary_angles(shape.context, shape.width // shape.heads)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        cos, sin, mask = self.cos[:length], self.sin[:length], None
        if segments is not None:  # also where no border is: which kernel computes must not depend on the samples
            segments = segments.long()
            places = positions(segments)
            cos, sin, mask = self.cos[places].unsqueeze(1), self.sin[places].unsqueeze(1), attention_mask(segments)
        x = self.dropout(self.embed_tokens(tokens.long()))
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.norm(x)


class Block(nn.Module):
    """x [n, t, width] -> [n, t, width]: attention, then the MLP, each around a residual connection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=NORM_EPS)
        self.mlp = GatedMLP(shape)
        self.dropout = nn.Dropout(shape.dropout) if shape.dropout else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions (Su et al. 2021). `mask` says who sees whom; None: causal."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (self._split(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(
            rotate(q, cos, sin),
            rotate(k, cos, sin),
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[n, t, width] -> [n, heads, t, width / heads]"""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def initialise(model: nn.Module, layers: int) -> None:
    """Normal weights with standard deviation 1/sqrt(inputs).

    What writes into the residual stream starts smaller by 1/sqrt(2 layers), which keeps the stream's variance
    independent of depth (Radford et al. 2019, section 2.3). The embedding has 1/sqrt(width), so that as the tied output
    projection, too, it gives logits of size one: with the customary 0.02 the first hundred steps go into growing it.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.embedding_dim))
        elif isinstance(module, nn.Linear):
            scale = 1 / math.sqrt(2 * layers) if name.endswith(("o_proj", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=scale / math.sqrt(module.in_features))


def rotary_angles(context: int, head_width: int) -> Tensor:
    """Angles [context, head_width / 2] in radians, fp32."""
    frequencies = ROTARY_BASE ** -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    return torch.outer(torch.arange(context, dtype=torch.float32), frequencies)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + half) of x [n, heads, t, head_width] by the angles of their position.

    cos, sin: [t, head_width / 2], or [n, 1, t, head_width / 2] if every sample has positions of its own.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def first_tokens(segments: Tensor) -> Tensor:
    """Where the document of each token begins. segments [n, t] (int64, another number than before at every border) ->
    [n, t], int64."""
    places = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = segments.diff(dim=1, prepend=segments[:, :1] - 1) != 0
    return places.where(begins, 0).cummax(dim=1).values


def positions(segments: Tensor) -> Tensor:
    """Distance of each token from the first one of its document. segments [n, t], int64 -> [n, t], int64."""
    return torch.arange(segments.shape[1], device=segments.device) - first_tokens(segments)


def attention_mask(segments: Tensor) -> Tensor:
    """Whether token i sees token j: not after i, and of the same document. segments [n, t] -> bool [n, 1, t, t].

    Padding sees padding, so that no row is empty: a softmax over nothing is not a number.
    """
    first, length = first_tokens(segments), segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return ((first[:, :, None] == first[:, None, :]) & causal).unsqueeze(1)
