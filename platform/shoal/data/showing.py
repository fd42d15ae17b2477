"""Samples as text that people can judge: tokens decoded, images as a few characters, numbers with their range."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shoal.data.shards import TOKENS
from shoal.data.tokenize import BYTES
from shoal.errors import ConfigError

Decode = Callable[[np.ndarray], str]

_SHADES = " .:-=+*#%@"
_WIDTH = 32
"""Characters of a picture's line."""
_TEXT = 300
"""Characters of a decoded text that are shown."""
_FEW = 8
_ALL = 64
"""Numbers that JSON holds one by one."""


def find_decoder(about: Mapping[str, Any], manifest: Mapping[str, Any] | None, file: str | None) -> Decode | None:
    """What turns the tokens of prepared data into text; None: the data has none, or its tokenizer is not to be found.

    `about` is the catalog's metadata, `file` a tokenizer file that replaces the one that the manifest names. Raises
    ConfigError if `file` cannot be read or is not the one that the data was made with.
    """
    name = str(about.get("tokenizer") or "")
    if name == BYTES.name:
        return lambda tokens: tokens.astype(np.uint8).tobytes().decode(errors="replace")
    if not name:
        return None
    place = file or ((manifest or {}).get("options") or {}).get("tokenizer")
    try:
        definition = Path(place).read_text(encoding="utf-8") if place else None
    except OSError as error:
        if file is not None:
            raise ConfigError(f"tokenizer={file} cannot be read ({error.strerror}); name a tokenizer.json") from None
        return None
    if definition is None:
        return None
    digest = hashlib.sha256(definition.encode()).hexdigest()[:12]
    if name.rpartition("@")[2] != digest:
        if file is not None:
            raise ConfigError(f"tokenizer={file} has the digest {digest}, and the data was made with {name}; name that")
        return None  # the file was changed since
    return _decoder(definition)


def _decoder(definition: str) -> Decode | None:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    tokenizer = Tokenizer.from_str(definition)
    return lambda tokens: tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


def lines(name: str, value: np.ndarray, decode: Decode | None = None) -> list[str]:
    """One column of one sample; the first line without the column's name."""
    value = np.asarray(value)
    if not value.ndim:
        return [str(value)]
    if name == TOKENS and decode is not None:
        text = decode(value)
        return [json.dumps(text[:_TEXT], ensure_ascii=False) + (" ..." if len(text) > _TEXT else "")]
    if not value.size:
        return ["nothing"]
    span = f"from {value.min()} to {value.max()}"
    image = picture(value)
    if image is not None:
        return [span, *drawn(image)]
    more = " ..." if value.size > _FEW else ""
    return [f"{' '.join(map(str, value.reshape(-1)[:_FEW]))}{more}  ({span})"]


def as_json(name: str, value: np.ndarray, decode: Decode | None = None) -> Any:
    """The same as a JSON value: text, numbers, or, where these are many, what they come to."""
    value = np.asarray(value)
    if name == TOKENS and decode is not None:
        return {"text": decode(value)}
    if value.size <= _ALL:
        return value.tolist()
    return {
        "shape": list(value.shape), "min": value.min().item(), "max": value.max().item(), "mean": float(value.mean()),
    }  # fmt: skip


def picture(value: np.ndarray) -> np.ndarray | None:
    """`value` as one grey picture float64 [height, width] if its shape is that of an image: [H, W], [C, H, W] or
    [H, W, C] with 1, 3 or 4 channels, and at least 4x4 pixels."""
    if value.ndim == 3 and value.shape[0] in (1, 3, 4):
        value = value.mean(axis=0, dtype=np.float64)
    elif value.ndim == 3 and value.shape[2] in (1, 3, 4):
        value = value.mean(axis=2, dtype=np.float64)
    return value.astype(np.float64) if value.ndim == 2 and min(value.shape) >= 4 else None


def drawn(image: np.ndarray) -> list[str]:
    """A picture [height, width] in shades of characters, which are twice as high as wide."""
    height, width = image.shape
    across = min(_WIDTH, 2 * width)
    down = max(1, round(height * across / (2 * width)))
    rows = ((np.arange(down) + 0.5) * height / down).astype(int)
    columns = ((np.arange(across) + 0.5) * width / across).astype(int)
    chosen = np.nan_to_num(image[np.ix_(rows, columns)])
    low, high = float(chosen.min()), float(chosen.max())
    shades = ((chosen - low) / (high - low or 1.0) * (len(_SHADES) - 1)).round().astype(int)
    return ["".join(_SHADES[s] for s in row).rstrip() for row in shades]
